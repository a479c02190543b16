"""Catch, a board of 10 x 5 seen as a vector, solved by the world model on two CPU cores.

Run:     python -m jaxrl.train --config=catch
Expect:  eval_episode/avg_score 1.0 (every ball caught) by 8,000 env_steps; a few minutes on two cores.
"""

from jaxrl.config import Config, EnvConfig, LossConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    task="toy_catch",
    steps=12_000,  # env_steps; some 1,200 episodes of 9 decisions
    batch_size=16,  # dreamerv3
    batch_length=16,  # own choice: covers a whole episode, and the next one's start
    train_ratio=128.0,  # own choice: one update per 2 decisions
    log_every=500,  # own choice
    eval_every=4_000,  # own choice
    eval_eps=100,  # own choice: the score is a mean of +1 and -1
    env=EnvConfig(
        num_envs=4,  # own choice
        action_repeat=1,  # the game has no idle frames
    ),
    model=ModelConfig(
        size="debug",  # own choice: no pixels, so few units do
        deter=128,  # own choice
        hidden=32,  # own choice
        classes=8,  # own choice
        stoch=8,  # own choice
        units=64,  # own choice
    ),
    loss=LossConfig(
        rec=10.0,  # own choice: two cells of a board weigh less than the thousands of pixels of an image
        horizon=9,  # own choice: as long as an episode
        entropy=1e-2,  # own choice: at 3e-4 the policy settles before the model can tell where the ball falls
    ),
    opt=OptConfig(
        lr=1e-3,  # own choice: small networks bear higher rates
        warmup=100,  # own choice
    ),
    replay=ReplayConfig(
        capacity=20_000,  # own choice: the whole run
    ),
)
