"""DrQ-v2 on the pixels of the DeepMind Control Suite: the published benchmark, its rules and numbers.

Run:     python -m jaxrl.train --config=dmc_vision --task=dmc_cartpole_swingup
Expect:  Yarats et al. 2021 report 863 (sd 15, 10 seeds) at 1M env_steps; not yet run to its end here.
Harder:  medium tasks (cheetah_run, ...) --steps=3_100_000 --drq.noise_steps=500_000; hard ones (humanoid)
         --steps=30_100_000 --drq.noise_steps=2_000_000 --opt.lr=8e-5 --drq.features=100;
         walker_stand, walk and run --drq.nstep=1 --batch_size=512 --train_ratio=256;
         quadruped_run --replay.capacity=100_000
Small:   --env.size=48 --batch_size=32 --train_ratio=16 --replay.capacity=20_000 --steps=8_000
         --eval_every=4_000 --eval_eps=2 --warmup=500 --drq.random_steps=500 --drq.noise_steps=2_000

A benchmark pins its rules, also where they equal the defaults. Simulation and pictures come from EnvPool
and need an OpenGL library (libegl1, libgl1-mesa-dri).
"""

from jaxrl.config import Config, DrqConfig, EnvConfig, EvalConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    agent="drq",  # the preset is about it
    task="dmc_cartpole_swingup",  # DrQ-v2: one of the easy tasks
    steps=1_100_000,  # env_steps; DrQ-v2, easy tasks
    batch_size=256,  # DrQ-v2 config.yaml
    train_ratio=128.0,  # DrQ-v2: one update of 256 per 2 agent_steps
    warmup=2_000,  # agent_steps; DrQ-v2: 4000 frames before the first update
    log_every=2_000,  # own choice
    eval_every=10_000,  # env_steps; DrQ-v2 config.yaml
    eval_eps=10,  # DrQ-v2 config.yaml
    env=EnvConfig(
        num_envs=1,  # DrQ-v2
        action_repeat=2,  # DrQ-v2 config.yaml
        size=84,  # DrQ-v2
    ),
    drq=DrqConfig(
        noise_steps=100_000,  # agent_steps; DrQ-v2, easy tasks
    ),
    model=ModelConfig(
        compute_dtype="float32",  # as published
    ),
    opt=OptConfig(
        name="adam",  # DrQ-v2
        lr=1e-4,  # DrQ-v2 config.yaml
        agc=0.0,  # DrQ-v2 clips nothing
        eps=1e-8,  # torch's default
        warmup=0,  # DrQ-v2
    ),
    replay=ReplayConfig(
        capacity=1_000_000,  # agent_steps; DrQ-v2 config.yaml
    ),
    eval=EvalConfig(
        mode="mode",  # DrQ-v2: the mean action
    ),
)
