"""Atari with 200M env_steps: sticky actions, all 18 actions, 16 environments, few updates per step.

Run:     python -m jaxrl.train --config=atari --task=atari_breakout --model.size=200m
Expect:  days on one accelerator; not yet measured here.
"""

from jaxrl.config import Config, EnvConfig

config = Config(
    steps=200_000_000,  # env_steps; 200M frames, as in Machado et al. 2018 and dreamerv3
    train_ratio=32.0,  # dreamerv3 configs.yaml, atari
    log_every=128_000,  # env_steps; 2,000 vector steps of 64
    eval_every=3_200_000,  # env_steps; 62 evaluations in a run
    env=EnvConfig(
        num_envs=16,  # dreamerv3 configs.yaml, run.envs
        size=96,  # dreamerv3 configs.yaml, env.atari
        gray=True,  # dreamerv3 configs.yaml, env.atari
        sticky=0.25,  # Machado et al. 2018
        full_actions=True,  # Machado et al. 2018
    ),
)
