"""The SO-101 arm learns to grasp a cube and lift it, from a wrist camera, a front camera and its joints.

Run:     python -m jaxrl.train --config=so101_lift
Expect:  not yet run to its end on an accelerator here.
Small:   --task=mjx_so101_reach --env.observe=state --env.num_envs=16 --batch_size=128 --train_ratio=32
         --opt.lr=5e-4 --steps=64_000 --eval_every=16_000 --eval_eps=20 --log_every=8_000 --warmup=2_000
         --drq.random_steps=2_000 --drq.noise_steps=20_000 --replay.capacity=40_000
         learns from the simulator's state to bring the gripper over the cube

A success is a cube that is held in the gripper, more than 8 cm above the table, for 10 control steps. The
policy never sees where the cube is, but with --env.observe=state, which learns without pixels.
"""

from jaxrl.config import Config, DrqConfig, EnvConfig, EvalConfig, OptConfig, ReplayConfig

config = Config(
    agent="drq",  # the preset is about it
    task="mjx_so101_lift",
    steps=1_000_000,  # env_steps; own choice: pick-101 needed 800,000
    batch_size=256,  # DrQ-v2 config.yaml
    train_ratio=128.0,  # DrQ-v2: one update of 256 per 2 agent_steps
    warmup=4_000,  # agent_steps; own choice
    log_every=6_400,  # own choice
    eval_every=64_000,  # own choice
    eval_eps=40,  # own choice: a success rate to 2.5 %
    env=EnvConfig(
        num_envs=32,  # own choice: 16 updates follow each step of all of them
        action_repeat=2,  # pick-101
        size=84,  # DrQ-v2, pick-101
        bonus=2_000.0,  # own choice: what lingering below the height is worth for ever, 2 * 9.5 / (1 - 0.99)
    ),
    drq=DrqConfig(
        random_steps=4_000,  # agent_steps; own choice
        noise_steps=250_000,  # agent_steps; own choice: half of the run
        hidden=256,  # pick-101
    ),
    opt=OptConfig(
        name="adam",  # DrQ-v2
        lr=1e-4,  # DrQ-v2 config.yaml
        agc=0.0,  # DrQ-v2 clips nothing
        eps=1e-8,  # torch's default
        warmup=0,  # DrQ-v2
    ),
    replay=ReplayConfig(
        capacity=200_000,  # agent_steps; own choice, 8.5 GB with two cameras; pick-101 had 100,000
    ),
    eval=EvalConfig(
        mode="mode",  # DrQ-v2: the mean action
    ),
)
