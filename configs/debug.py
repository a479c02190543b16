"""The whole system in seconds on two CPU cores: the smallest model on an environment that is a clock.

Run:     python -m jaxrl.train --config=debug
Expect:  5 rows of metrics, 2 evaluations, 100 updates; nothing is learned worth mentioning.
"""

from jaxrl.config import Config, EnvConfig, LossConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    task="toy_clock",
    steps=400,  # env_steps; own choice
    batch_size=4,  # own choice
    batch_length=8,  # own choice
    train_ratio=8.0,  # own choice: one update per 4 decisions
    log_every=100,  # own choice
    eval_every=200,  # own choice
    eval_eps=2,  # own choice
    env=EnvConfig(
        action_repeat=1,  # the clock has no idle frames
    ),
    model=ModelConfig(
        size="debug",  # own choice
    ),
    loss=LossConfig(
        horizon=3,  # own choice
    ),
    opt=OptConfig(
        warmup=10,  # own choice
    ),
    replay=ReplayConfig(
        capacity=1_000,  # own choice: the whole run
    ),
)
