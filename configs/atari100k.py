"""Atari-100k: 100k decisions of one game (400k env_steps), the benchmark of sample efficiency.

Run:     python -m jaxrl.train --config=atari100k --task=atari_pong
Expect:  see the README table; the published model is --model.size=200m, the default is 12m on an
         accelerator and 1m on a CPU.
Scores:  training returns in the last 10k env_steps (as DreamerV3 is published) and evaluations of
         the final policy are different numbers; both are recorded.

A benchmark pins its rules, also where they equal the defaults: who changes a default does not
change the benchmark.
"""

from jaxrl.config import Config, EnvConfig

config = Config(
    task="atari_pong",  # any of the 26 games
    steps=400_000,  # env_steps; benchmark definition: 100k decisions, action repeat 4
    batch_size=16,  # dreamerv3 configs.yaml
    batch_length=64,  # dreamerv3 configs.yaml
    train_ratio=256.0,  # dreamerv3 configs.yaml, atari100k: one update per 16 env_steps
    env=EnvConfig(
        num_envs=1,  # dreamerv3 configs.yaml, atari100k
        action_repeat=4,  # benchmark definition
        size=64,  # dreamerv3 configs.yaml, env.atari100k
        gray=False,  # dreamerv3 configs.yaml, env.atari100k
        stack=1,  # dreamerv3: the recurrent state remembers
        sticky=0.0,  # benchmark definition
        full_actions=False,  # benchmark definition: the game's own actions
        noops=30,  # benchmark definition
        fire_reset=False,  # dreamerv3 configs.yaml, env.atari100k
        lives="unused",  # dreamerv3 configs.yaml, env.atari100k
        clip_reward=False,  # dreamerv3: two-hot rewards need no clipping
        time_limit=108_000,  # env_steps; 30 minutes of play at 60 Hz
    ),
)
