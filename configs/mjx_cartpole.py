"""Balance a pole from pixels with DrQ-v2, simulated, drawn and learned on one device.

Run:     python -m jaxrl.train --config=mjx_cartpole
Harder:  --task=mjx_cartpole_swingup --steps=1_000_000
Small:   --env.size=48 --batch_size=64 --train_ratio=32 --opt.lr=3e-4 --steps=40_000 --eval_every=8_000
         --warmup=500 --drq.random_steps=500 --drq.noise_steps=10_000
Expect:  with the small size, eval_episode/avg_score above 900 of 1000 within 30 minutes on two CPU cores.
"""

from jaxrl.config import Config, DrqConfig, EnvConfig, EvalConfig, OptConfig, ReplayConfig

config = Config(
    agent="drq",
    task="mjx_cartpole_balance",
    steps=400_000,  # env_steps; DrQ-v2 is at 90 % of its final score after 60,000
    batch_size=256,  # DrQ-v2 config.yaml
    train_ratio=128.0,  # DrQ-v2: one update of 256 per 2 agent_steps
    warmup=2_000,  # agent_steps; DrQ-v2: 4000 frames before the first update
    log_every=2_000,  # own choice
    eval_every=20_000,  # own choice
    eval_eps=10,  # DrQ-v2 config.yaml
    env=EnvConfig(
        num_envs=4,  # own choice: a step of 4 costs hardly more than one of 1
        action_repeat=2,  # DrQ-v2 config.yaml
        size=84,  # DrQ-v2
    ),
    drq=DrqConfig(
        noise_steps=100_000,  # agent_steps; DrQ-v2, easy tasks
    ),
    opt=OptConfig(
        name="adam",  # DrQ-v2
        lr=1e-4,  # DrQ-v2 config.yaml
        agc=0.0,  # DrQ-v2 clips nothing
        eps=1e-8,  # torch's default
        warmup=0,  # DrQ-v2
    ),
    replay=ReplayConfig(
        capacity=200_000,  # agent_steps; own choice: the whole run
    ),
    eval=EvalConfig(
        mode="mode",  # DrQ-v2: the mean action
    ),
)
