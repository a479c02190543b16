"""Atari-100k with DrQ(eps): double Q-learning on shifted pixels, 100k decisions of one game.

Run:     python -m jaxrl.train --config=atari100k_drq --task=atari_pong
Expect:  not yet run to its end here. Agarwal et al. 2021 publish DrQ(eps) with 100 evaluation episodes.
Small:   --env.size=48 --drq.channels=8 --drq.hidden=64 --steps=8_000 --eval_every=4_000 --eval_eps=1
         --warmup=400 --drq.random_steps=400 --drq.noise_steps=800 --train_ratio=8 --batch_size=16

A benchmark pins its rules, also where they equal the defaults. "Dopamine" is google/dopamine,
labs/atari_100k: DrQ_eps.gin and the agent that it configures.
"""

from jaxrl.config import Config, DrqConfig, EnvConfig, EvalConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    agent="drq",  # the preset is about it
    task="atari_pong",  # any of the 26 games
    steps=400_000,  # env_steps; benchmark definition: 100k decisions, action repeat 4
    batch_size=32,  # Dopamine
    train_ratio=32.0,  # Dopamine: one update per decision
    warmup=1_600,  # agent_steps; Dopamine
    eval_every=40_000,  # own choice
    eval_eps=10,  # own choice; Dopamine plays 100 at the end
    env=EnvConfig(
        num_envs=1,  # Dopamine
        action_repeat=4,  # benchmark definition
        size=84,  # Dopamine
        gray=True,  # Dopamine
        sticky=0.0,  # Dopamine
        lives="terminal",  # Dopamine, terminal_on_life_loss
        clip_reward=True,  # Dopamine's runner trains on rewards cut to [-1, 1]; ours takes their sign
        noops=30,  # benchmark definition
        time_limit=108_000,  # env_steps; Dopamine, 27,000 decisions
    ),
    drq=DrqConfig(
        stack=4,  # DQN
        nstep=10,  # Dopamine
        tau=1.0,  # Dopamine: the target is the network of the update before
        channels=32,  # Dopamine, full_rainbow: 32, 64, 64
        hidden=512,  # Dopamine, full_rainbow
        shift=4,  # Dopamine
        intensity=0.05,  # Dopamine
        random_steps=1_600,  # agent_steps; Dopamine
        noise_start=1.0,  # Dopamine
        noise_end=0.01,  # Dopamine
        noise_steps=5_000,  # agent_steps; Dopamine
        eval_noise=0.001,  # Dopamine
    ),
    model=ModelConfig(
        compute_dtype="float32",  # as published
    ),
    opt=OptConfig(
        name="adam",  # Dopamine
        lr=1e-4,  # Dopamine
        agc=0.0,  # Dopamine clips no gradient
        eps=1.5e-4,  # Dopamine
        warmup=0,  # Dopamine
    ),
    replay=ReplayConfig(
        capacity=100_000,  # agent_steps; the whole run
    ),
    eval=EvalConfig(
        mode="mode",  # Dopamine: greedy but for eval_noise
    ),
)
