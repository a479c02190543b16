"""Balance a pole from pixels with DrQ, simulated, drawn and learned on one device; sized for two CPU cores.

Run:     python -m jaxrl.train --config=mjx_cartpole
Expect:  eval_episode/avg_score above 980 of 1000 by 200,000 to 400,000 env_steps, on three of three seeds;
         the whole run takes 17 minutes with two others beside it on two CPU cores.
Full:    --env.size=84 --env.gray=false --env.cameras=fixed --env.num_envs=4 --env.action_repeat=2
         --batch_size=256 --train_ratio=128 --opt.lr=1e-4 --drq.channels=32 --drq.hidden=1024
         --drq.discount=0.99 --drq.shift=4 --drq.noise_steps=100_000 --drq.saturation=0 --env.samples=1
         --replay.capacity=1_000_000 --steps=1_100_000 are the sizes and numbers of DrQ-v2

Against DrQ-v2: a smaller picture and network, a decision every 8 steps instead of every 2 (with a discount
that looks as far ahead), fewer updates of more varied transitions, and a penalty that keeps the actor off
its bounds, without which a third of the run passes there.
"""

from jaxrl.config import Config, DrqConfig, EnvConfig, EvalConfig, OptConfig, ReplayConfig

config = Config(
    agent="drq",  # the preset is about it
    task="mjx_cartpole_balance",
    steps=512_000,  # env_steps; own choice: some seeds are done after 200,000
    batch_size=64,  # own choice; DrQ-v2 has 256
    train_ratio=16.0,  # own choice: one update per 4 agent_steps, half of DrQ-v2's
    warmup=2_000,  # agent_steps; DrQ-v2: 4000 frames before the first update
    log_every=16_000,  # own choice: an episode of each environment
    eval_every=64_000,  # own choice
    env=EnvConfig(
        num_envs=16,  # own choice: 16 are stepped and drawn in the time of a tenth of an update
        action_repeat=8,  # own choice; DrQ-v2 has 2, older work on this task 8
        size=48,  # own choice; DrQ-v2 has 84
        gray=True,  # own choice
        samples=2,  # own choice: a pole one pixel wide shows its angle only with soft edges
        cameras="near",  # own choice
    ),
    drq=DrqConfig(
        channels=16,  # own choice; DrQ-v2 has 32
        hidden=256,  # own choice; DrQ-v2 has 1024
        shift=2,  # own choice: DrQ-v2's 4 of 84, to scale
        discount=0.97,  # own choice: DrQ-v2's 0.99 at 2 steps per decision
        noise_steps=20_000,  # agent_steps; own choice: a third of the run
        saturation=0.1,  # own choice
    ),
    opt=OptConfig(
        name="adam",  # DrQ-v2
        lr=5e-4,  # own choice: small networks bear higher rates
        agc=0.0,  # DrQ-v2 clips nothing
        eps=1e-8,  # torch's default
        warmup=0,  # DrQ-v2
    ),
    replay=ReplayConfig(
        capacity=100_000,  # agent_steps; own choice: more than the whole run
    ),
    eval=EvalConfig(
        mode="mode",  # DrQ-v2: the mean action
    ),
)
