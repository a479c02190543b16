"""Reach, a continuous-control toy: push a point to a target, on two CPU cores.

Run:     python -m jaxrl.train --config=reach
Expect:  eval_episode/avg_score rises far above that of --agent=random; minutes on two cores.
"""

from jaxrl.config import Config, EnvConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    task="toy_reach",
    steps=20_000,  # env_steps; own choice
    batch_size=16,  # dreamerv3
    batch_length=16,  # own choice: the dynamics are short
    train_ratio=64.0,  # own choice: one update per 4 decisions
    log_every=500,  # own choice
    eval_every=5_000,  # own choice
    eval_eps=20,  # own choice
    env=EnvConfig(
        num_envs=4,  # own choice
        action_repeat=1,  # the toy has no idle frames
    ),
    model=ModelConfig(
        size="debug",  # own choice: no pixels, so few units do
        deter=256,  # own choice
        hidden=64,  # own choice
        classes=8,  # own choice
        units=64,  # own choice
    ),
    opt=OptConfig(
        lr=4e-4,  # own choice: small networks bear ten times the rate
        warmup=100,  # own choice
    ),
    replay=ReplayConfig(
        capacity=20_000,  # own choice: the whole run
    ),
)
