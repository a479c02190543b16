"""Atari-100k with the losses, optimizer and ratio of DreamerV3 2023, which solved Pong.

Run:     python -m jaxrl.train --config=atari100k_v1 --task=atari_pong
Expect:  four times the updates of atari100k, and about four times its time.

This is not the 2023 program. From it: the loss scales, the uniform share of the actor, Adam with
global clipping, one update per decision, float32, no online queue, sequences that start from zeros, no
value loss on replay, a continuation head without the discount. Not from it: the architecture stays
that of 2025 (block GRU, RMSNorm, max-pooling encoder, symexp two-hot heads, widths by model.size); one
optimizer serves all parts at the world model's rate, where actor and critic had 3e-5, epsilon 1e-5 and
clip 100 of their own; the initial state is zero, not learned; a predicted continuation counts as a
probability, not rounded; no random steps fill replay first.
"""

from jaxrl.config import Config, LossConfig, ModelConfig, OptConfig, ReplayConfig

config = Config(
    train_ratio=1024.0,  # DreamerV3 2023 configs.yaml, atari100k
    warmup=1_024,  # agent_steps; DreamerV3 2023 run/train.py: one batch of steps (random there) first
    model=ModelConfig(
        actor_unimix=0.01,  # DreamerV3 2023 configs.yaml, actor
        compute_dtype="float32",  # DreamerV3 2023 configs.yaml, atari100k
    ),
    loss=LossConfig(
        dyn=0.5,  # DreamerV3 2023 configs.yaml, loss_scales
        repval=0.0,  # came in 2024
        contdisc=False,  # DreamerV3 2023: the discount multiplies the predicted continuation
    ),
    opt=OptConfig(
        name="adam",  # DreamerV3 2023 configs.yaml, model_opt
        lr=1e-4,  # DreamerV3 2023 configs.yaml, model_opt
        agc=0.0,  # came in 2024
        clip=1000.0,  # DreamerV3 2023 configs.yaml, model_opt
        eps=1e-8,  # DreamerV3 2023 configs.yaml, model_opt
        warmup=0,  # DreamerV3 2023 configs.yaml, model_opt
    ),
    replay=ReplayConfig(
        context=False,  # came in 2024
        online=False,  # DreamerV3 2023 configs.yaml, replay_online
    ),
)
