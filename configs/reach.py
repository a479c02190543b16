"""Reach, a continuous-control toy: push a point to a target, on two CPU cores.

Run:     python -m jaxrl.train --config=reach
Expect:  eval_episode/avg_score of 22 to 34 of 50 at 4,000 env_steps and 38 to 41 at 12,000, on three seeds
         (random: about 2); 9 minutes on two cores with other work beside it.
"""

from jaxrl.config import Config, EnvConfig, LossConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    task="toy_reach",
    steps=12_000,  # env_steps; own choice
    batch_size=16,  # dreamerv3
    batch_length=16,  # own choice: the dynamics are short
    train_ratio=128.0,  # own choice: one update per 2 decisions
    log_every=500,  # own choice
    eval_every=4_000,  # own choice
    eval_eps=20,  # own choice
    env=EnvConfig(
        num_envs=4,  # own choice
        action_repeat=1,  # the toy has no idle frames
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
        rec=10.0,  # own choice: a handful of numbers weigh less than the thousands of pixels of an image
    ),
    opt=OptConfig(
        lr=1e-3,  # own choice: small networks bear higher rates
        warmup=100,  # own choice
    ),
    replay=ReplayConfig(
        capacity=20_000,  # own choice: the whole run
    ),
)
