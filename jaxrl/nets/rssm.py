"""Recurrent state-space model: block GRU core, categorical prior and posterior, one time step at a time.

The state is `deter` [..., D] and `stoch` [..., S C] (one-hot per variable, flattened). What does not
depend on the state (the action's and the tokens' share of the inputs) is computed ahead of the
loop over time, for all steps at once: `embed_action`, `embed_tokens`.

Source: dreamerv3 rssm.py (2025).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl.nets.blocks import MLP, BlockDense, Dense, DType, NormAct, SplitDense, flat, wide_blockwise
from jaxrl.ops.distributions import mix_uniform


class Shares(NamedTuple):
    """What layers make of a deter, without biases."""

    mix: jax.Array  # [..., D]
    core: jax.Array  # [..., h], of in_deter
    post: jax.Array  # [..., h], of the posterior's first layer


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
        self.from_deter = SplitDense((self.deter,), self.hidden, self.dtype, name="in_deter_dense")
        self.from_deter_act = NormAct(self.dtype, name="in_deter_act")
        self.from_stoch = SplitDense(
            (self.stoch * self.classes,), self.hidden, self.dtype, name="in_stoch_dense"
        )
        self.from_stoch_act = NormAct(self.dtype, name="in_stoch_act")
        self.from_action = Dense(self.hidden, self.dtype, name="in_action_dense")
        self.from_action_act = NormAct(self.dtype, name="in_action_act")
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
        return self.advance(deter, self.from_deter.part(0, deter), self.from_stoch.part(0, stoch), action)

    def advance(self, deter, x0, x1, action, product=None) -> jax.Array:
        """`core`, given what in_deter and in_stoch [..., h], perhaps mix [..., D], make without biases."""
        x0 = self.from_deter_act(x0 + self.from_deter.bias())
        x1 = self.from_stoch_act(x1 + self.from_stoch.bias())
        x = jnp.concatenate([x0, x1, action], -1)
        x = self.mix_act(self.mix(deter, x, product))
        gates = self.gates(x).reshape(*x.shape[:-1], self.blocks, 3, self.deter // self.blocks)
        reset, candidate, update = (gates[..., i, :].reshape(x.shape) for i in range(3))
        candidate = jnp.tanh(jax.nn.sigmoid(reset) * candidate)
        update = jax.nn.sigmoid(update - 1)
        return update * candidate + (1 - update) * deter

    def shares(self, deter: jax.Array) -> Shares:
        """Every product with a deter, as one: a dense layer's is the sum of what blocks of its rows give.

        Args:
          deter: [g, B, D/g], see `blocks.blocked`.
        """
        g, width = self.blocks, self.deter // self.blocks
        mix = self.mix.variables["params"]["kernel"][:, :width]
        dense = [layer.kernel[: self.deter] for layer in (self.from_deter, self.post)]
        dense = [kernel.reshape(g, width, self.hidden) for kernel in dense]
        kernel = jnp.concatenate([mix, *dense], -1).astype(self.dtype)
        mix, core, post = jnp.split(wide_blockwise(deter, kernel), (width, width + self.hidden), -1)
        return Shares(*(x.astype(self.dtype) for x in (flat(mix), core.sum(0), post.sum(0))))

    def share(self, stoch: jax.Array) -> jax.Array:
        """What in_stoch makes of a stoch, without bias: [..., S C] -> [..., h]."""
        return self.from_stoch.part(0, stoch)

    def prior(self, deter: jax.Array) -> jax.Array:
        """Log-probabilities f32 [..., S, C] of the next stoch, before the observation is seen."""
        return self.log_probs(self.prior_out(self.prior_mlp(deter)))

    def posterior(self, deter: jax.Array, tokens: jax.Array) -> jax.Array:
        """Log-probabilities f32 [..., S, C], given `embed_tokens` of the observation."""
        return self.posterior_of(self.post.part(0, deter), tokens)

    def posterior_of(self, share: jax.Array, tokens: jax.Array) -> jax.Array:
        """`posterior`, given the deter's share of its first layer [..., h]."""
        return self.log_probs(self.post_out(self.post_act(share + tokens)))

    def log_probs(self, logits: jax.Array) -> jax.Array:
        logits = logits.astype(jnp.float32).reshape(*logits.shape[:-1], self.stoch, self.classes)
        return mix_uniform(logits, self.unimix)

    def __call__(self, deter, stoch, action, tokens):
        """One step of everything, only to create the parameters."""
        deter = self.core(deter, stoch, self.embed_action(action))
        return self.prior(deter), self.posterior(deter, self.embed_tokens(tokens))
