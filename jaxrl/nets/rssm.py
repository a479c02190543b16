"""Recurrent state-space model: block GRU core, categorical prior and posterior, one time step at a time.

The state is `deter` [..., D] and `stoch` [..., S C] (one-hot per variable, flattened). What does not
depend on the state (the action's and the tokens' share of the inputs) is computed ahead of the
loop over time, for all steps at once: `embed_action`, `embed_tokens`.

Source: dreamerv3 rssm.py (2025).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.blocks import MLP, BlockDense, Dense, DType, NormAct, SplitDense
from jaxrl.ops.distributions import mix_uniform


class RSSM(nn.Module):
    deter: int  # D
    hidden: int  # h
    stoch: int  # S
    classes: int  # C
    blocks: int
    tokens: int  # width of the encoder's output
    unimix: float
    dtype: DType

    def setup(self):
        def inputs(name):
            return Dense(self.hidden, self.dtype, name=f"{name}_dense"), NormAct(
                self.dtype, name=f"{name}_act"
            )

        self.from_deter, self.from_deter_act = inputs("in_deter")
        self.from_stoch, self.from_stoch_act = inputs("in_stoch")
        self.from_action, self.from_action_act = inputs("in_action")
        self.mix = BlockDense(self.deter, self.blocks, self.dtype, 3 * self.hidden, name="mix")
        self.mix_act = NormAct(self.dtype, name="mix_act")
        self.gates = BlockDense(3 * self.deter, self.blocks, self.dtype, name="gates")
        self.prior_mlp = MLP(2, self.hidden, self.dtype, name="prior")
        self.prior_out = Dense(self.stoch * self.classes, self.dtype, name="prior_out")
        self.post = SplitDense((self.deter, self.tokens), self.hidden, self.dtype, name="post")
        self.post_act = NormAct(self.dtype, name="post_act")
        self.post_out = Dense(self.stoch * self.classes, self.dtype, name="post_out")

    def embed_action(self, action: jax.Array) -> jax.Array:
        """[..., A] one-hot or continuous (any magnitude), zeros after a reset -> [..., h]."""
        action = action / jax.lax.stop_gradient(jnp.maximum(1, jnp.abs(action)))
        return self.from_action_act(self.from_action(action))

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """[..., tokens] -> [..., h], the observation's share of the posterior's first layer."""
        return self.post.part(1, tokens) + self.post.bias()

    def core(self, deter: jax.Array, stoch: jax.Array, action: jax.Array) -> jax.Array:
        """Next deter [..., D] from the state and the embedded action [..., h]."""
        x0 = self.from_deter_act(self.from_deter(deter))
        x1 = self.from_stoch_act(self.from_stoch(stoch))
        x = jnp.concatenate([x0, x1, action], -1)
        x = self.mix_act(self.mix(deter, x))
        gates = self.gates(x).reshape(*x.shape[:-1], self.blocks, 3, self.deter // self.blocks)
        reset, candidate, update = (gates[..., i, :].reshape(x.shape) for i in range(3))
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1)
        return update * candidate + (1 - update) * deter

    def prior(self, deter: jax.Array) -> jax.Array:
        """Log-probabilities f32 [..., S, C] of the next stoch, before the observation is seen."""
        return self.log_probs(self.prior_out(self.prior_mlp(deter)))

    def posterior(self, deter: jax.Array, tokens: jax.Array) -> jax.Array:
        """Log-probabilities f32 [..., S, C], given `embed_tokens` of the observation."""
        x = self.post_act(self.post.part(0, deter) + tokens)
        return self.log_probs(self.post_out(x))

    def log_probs(self, logits: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32).reshape(*logits.shape[:-1], self.stoch, self.classes)
        return mix_uniform(logits, self.unimix)

    def __call__(self, deter, stoch, action, tokens):
        """One step of everything, only to create the parameters."""
        deter = self.core(deter, stoch, self.embed_action(action))
        return self.prior(deter), self.posterior(deter, self.embed_tokens(tokens))
