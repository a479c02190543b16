"""Catch, a board of 10 x 5 seen as a vector, solved by the world model on two CPU cores.

Run:     python -m jaxrl.train --config=catch
Expect:  eval_episode/avg_score near 1.0 (every ball caught) well before the end; minutes on two cores.
"""

from jaxrl.config import Config, EnvConfig, LossConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    task="toy_catch",
    steps=20_000,  # env_steps; some 2,000 episodes of 9 decisions
    batch_size=16,  # dreamerv3
    batch_length=16,  # own choice: covers a whole episode, and the next one's start
    train_ratio=64.0,  # own choice: one update per 4 decisions
    log_every=500,  # own choice
    eval_every=5_000,  # own choice
    eval_eps=100,  # own choice: the score is a mean of +1 and -1
    env=EnvConfig(
        num_envs=4,  # own choice
        action_repeat=1,  # the game has no idle frames
    ),
    model=ModelConfig(
        size="debug",  # own choice: no pixels, so few units do
        deter=256,  # own choice
        hidden=64,  # own choice
        classes=8,  # own choice
        units=64,  # own choice
    ),
    loss=LossConfig(
        horizon=10,  # own choice: as long as an episode
    ),
    opt=OptConfig(
        lr=4e-4,  # own choice: small networks bear ten times the rate
        warmup=100,  # own choice
    ),
    replay=ReplayConfig(
        capacity=20_000,  # own choice: the whole run
    ),
)
