"""The networks of the learner, bound to their widths, and the loops over time that use them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.config import Config, model_widths
from jaxrl.nets.blocks import Head, blocked, flat
from jaxrl.nets.decoder import Decoder
from jaxrl.nets.encoder import Encoder, token_width
from jaxrl.nets.rssm import RSSM
from jaxrl.ops import recurrence
from jaxrl.ops.distributions import bounded_normal, gumbel_onehot, mix_uniform, straight_through
from jaxrl.ops.recurrence import masked
from jaxrl.types import Discrete, Key, Params, Spaces

ALLOWED = "allowed"  # beside the networks in parameters: [A] bool, where tasks share a set of actions


@struct.dataclass(kw_only=True)
class Latent:
    """State of the recurrent model, leaves [..., width]; stoch one-hot per variable, flattened."""

    deter: jax.Array  # [..., D] compute dtype
    stoch: jax.Array  # [..., S C] compute dtype

    @property
    def feature(self) -> jax.Array:
        """[..., D + S C], what heads see."""
        return jnp.concatenate([self.deter, self.stoch], -1)


@struct.dataclass(kw_only=True)
class Stored:
    """A latent as replay keeps it: 2 D + S bytes."""

    # [..., D] u16, the bits of a bf16: XLA:CPU would convert a whole bf16 ring to f32 and back at each write.
    deter: jax.Array
    index: jax.Array  # [..., S] u8, class of each variable


@struct.dataclass(kw_only=True)
class StepNoise:
    """Noise that samples one step."""

    stoch: jax.Array  # [..., S, C] Gumbel
    action: jax.Array  # [..., A] Gumbel, or normal where actions are continuous


@dataclasses.dataclass(frozen=True)
class Model:
    """All networks. Every method is pure; `p` is the parameter tree of `init`."""

    config: Config
    spaces: Spaces

    @functools.cached_property
    def dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.model.compute_dtype)

    @functools.cached_property
    def nets(self) -> dict[str, Any]:
        c, w = self.config.model, model_widths(self.config.model)
        obs, action = self.spaces.obs, self.spaces.action
        tokens = token_width(obs, w.depth, w.units)
        actions = action.n if isinstance(action, Discrete) else 2 * action.size
        return {
            "enc": Encoder(obs, w.depth, w.units, self.dtype),
            "dyn": RSSM(w.deter, w.hidden, c.stoch, w.classes, c.blocks, tokens, c.unimix, self.dtype),
            "dec": Decoder(obs, w.depth, w.units, c.blocks, self.dtype),
            "rew": Head(1, w.units, c.bins, self.dtype, 0.0),
            "con": Head(1, w.units, 1, self.dtype, 1.0),
            "pol": Head(3, w.units, actions, self.dtype, 0.01),
            "val": Head(3, w.units, c.bins, self.dtype, 0.0),
        }

    @property
    def stoch_shape(self) -> tuple[int, int]:
        return self.nets["dyn"].stoch, self.nets["dyn"].classes

    @property
    def action_width(self) -> int:
        action = self.spaces.action
        return action.n if isinstance(action, Discrete) else action.size

    def init(self, key: Key) -> Params:
        """Parameters of every network by name, f32."""
        zeros = self.zeros((1,))
        obs = {k: jnp.zeros((1, *s.shape), s.dtype) for k, s in self.spaces.obs.items()}
        action = jnp.zeros((1, self.action_width))
        tokens = jnp.zeros((1, self.nets["dyn"].tokens))
        inputs = {
            "enc": (obs,),
            "dyn": (zeros.deter, zeros.stoch, action, tokens),
            "dec": (zeros.deter, zeros.stoch),
        }
        keys = dict(zip(sorted(self.nets), jax.random.split(key, len(self.nets)), strict=True))
        return {
            name: net.init(keys[name], *inputs.get(name, (zeros.feature,)))["params"]
            for name, net in self.nets.items()
        }

    def run(self, p: Params, net: str, *inputs, method: str | None = None) -> jax.Array:
        return self.nets[net].apply({"params": p[net]}, *inputs, method=method)

    def zeros(self, lead: tuple[int, ...]) -> Latent:
        s, c = self.stoch_shape
        deter = jnp.zeros((*lead, self.nets["dyn"].deter), self.dtype)
        return Latent(deter=deter, stoch=jnp.zeros((*lead, s * c), self.dtype))

    def store(self, latent: Latent) -> Stored:
        s, c = self.stoch_shape
        index = latent.stoch.reshape(*latent.stoch.shape[:-1], s, c).argmax(-1)
        bits = jax.lax.bitcast_convert_type(latent.deter.astype(jnp.bfloat16), jnp.uint16)
        return Stored(deter=bits, index=index.astype(jnp.uint8))

    def restore(self, stored: Stored) -> Latent:
        s, c = self.stoch_shape
        stoch = jax.nn.one_hot(stored.index, c, dtype=self.dtype)
        deter = jax.lax.bitcast_convert_type(stored.deter, jnp.bfloat16).astype(self.dtype)
        return Latent(deter=deter, stoch=stoch.reshape(*stoch.shape[:-2], s * c))

    def encode_action(self, action: jax.Array) -> jax.Array:
        """Actions of the environment -> [..., A] f32: one-hot, or as they are."""
        if isinstance(self.spaces.action, Discrete):
            return jax.nn.one_hot(action, self.spaces.action.n)
        return action

    def noise(self, key: Key, lead: tuple[int, ...]) -> jax.Array:
        """Gumbel noise for the latents, [..., S, C]."""
        return jax.random.gumbel(key, (*lead, *self.stoch_shape))

    def step_noise(self, key: Key, lead: tuple[int, ...]) -> "StepNoise":
        """Noise for one latent and one action, from one draw: each costs a second of compilation on a CPU."""
        s, c = self.stoch_shape
        tiny = jnp.finfo(jnp.float32).tiny
        uniform = jax.random.uniform(key, (*lead, s * c + self.action_width), minval=tiny)
        stoch, action = uniform[..., : s * c], uniform[..., s * c :]
        discrete = isinstance(self.spaces.action, Discrete)
        return StepNoise(
            stoch=-jnp.log(-jnp.log(stoch)).reshape(*lead, s, c),
            action=-jnp.log(-jnp.log(action))
            if discrete
            else jax.scipy.special.ndtri(jnp.maximum(action, 2.0**-24)),
        )

    def sample(self, log_probs: jax.Array, noise: jax.Array) -> jax.Array:
        """One-hot samples with straight-through gradients, flattened: [..., S, C] -> [..., S C]."""
        onehot = straight_through(gumbel_onehot(log_probs, noise, self.dtype), log_probs)
        return onehot.reshape(*onehot.shape[:-2], -1)

    def observe(
        self, p: Params, carry: Latent, tokens: jax.Array, action: jax.Array, reset: jax.Array, key: Key
    ) -> tuple[Latent, jax.Array]:
        """Posterior states of a sequence.

        Args:
          carry: [B] state before the first row.
          tokens: [T, B, tokens]. action: [T, B, A] encoded action that led to each row.
          reset: [T, B] bool, rows that begin an episode.

        Returns:
          Latent [T, B], log-probabilities of the posterior [T, B, S, C] f32.
        """
        action = self.run(p, "dyn", jnp.where(reset[..., None], 0, action), method="embed_action")
        tokens = self.run(p, "dyn", tokens, method="embed_tokens")
        carry = masked(carry, reset[0])
        deter = self.run(p, "dyn", carry.deter, carry.stoch, action[0], method="core")
        start = Latent(deter=blocked(deter, self.nets["dyn"].blocks), stoch=carry.stoch)
        following = jax.tree.map(lambda x: jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]), (action, reset))
        inputs = tokens, self.noise(key, reset.shape), *following
        found = recurrence.states(self.observe_turn, {"dyn": p["dyn"]}, start, inputs)
        deter = flat(jnp.concatenate([start.deter[None], found.deter[:-1]]))
        latent = Latent(deter=deter, stoch=found.stoch)
        # Once more, for all rows at once: to save it in the loop would cost more.
        return latent, self.run(p, "dyn", latent.deter, tokens, method="posterior")

    def observe_turn(self, p, state: Latent, x) -> Latent:
        """From a row's deter [g, B, D/g] to its stoch and the next row's deter: a step from half way on.

        So a deter is multiplied once, with all that the posterior and the next step need of it.
        """
        tokens, noise, action, reset = x
        mix, core, post = self.run(p, "dyn", state.deter, method="shares")
        stoch = self.sample(self.run(p, "dyn", post, tokens, method="posterior_of"), noise)
        # What a new episode forgets is left out of the products, in the kernel that reads them.
        kept = flat(state.deter), core, self.run(p, "dyn", stoch, method="share"), mix
        *kept, mix = masked(kept, reset)
        deter = self.run(p, "dyn", *kept, action, mix, method="advance")
        return Latent(deter=blocked(deter, self.nets["dyn"].blocks), stoch=stoch)

    def observe_step(self, p, carry, action, tokens, noise) -> tuple[Latent, jax.Array]:
        """One row of `observe`; action and tokens embedded."""
        deter = self.run(p, "dyn", carry.deter, carry.stoch, action, method="core")
        log_probs = self.run(p, "dyn", deter, tokens, method="posterior")
        return Latent(deter=deter, stoch=self.sample(log_probs, noise)), log_probs

    def imagine(self, p: Params, start: Latent, key: Key, horizon: int) -> tuple[Latent, jax.Array]:
        """Rollouts of the policy in the model. No gradients.

        Returns:
          Latent [H+1, N], the start first; actions [H, N, ...] chosen in the first H states.
        """
        needed = {name: p[name] for name in ("dyn", "pol", ALLOWED) if name in p}
        p, start = jax.lax.stop_gradient((needed, start))
        keys = jax.random.split(key, horizon)

        def step(p, latent, key):
            noise, feature = self.step_noise(key, latent.deter.shape[:-1]), latent.feature
            action = self.choose(p, feature, noise.action)
            embedded = self.run(p, "dyn", self.encode_action(action), method="embed_action")
            return self.imagine_step(p, latent, embedded, noise.stoch), (feature, action)

        last, (feature, action) = recurrence.scan(recurrence.hoisted(step, p, start, keys), start, keys)
        # Kept as what the heads see, by far the largest array of imagination: once, not in parts beside it.
        feature = jnp.concatenate([feature, last.feature[None]])
        deter, stoch = jnp.split(feature, [start.deter.shape[-1]], -1)
        return Latent(deter=deter, stoch=stoch), action

    def imagine_step(self, p: Params, latent: Latent, action: jax.Array, noise: jax.Array) -> Latent:
        """The state after an embedded action [..., h], drawn from the prior with noise [..., S, C]."""
        deter = self.run(p, "dyn", latent.deter, latent.stoch, action, method="core")
        log_probs = self.run(p, "dyn", deter, method="prior")
        onehot = gumbel_onehot(log_probs, noise, self.dtype)
        return Latent(deter=deter, stoch=onehot.reshape(*onehot.shape[:-2], -1))

    def follow(self, p: Params, start: Latent, action: jax.Array, key: Key) -> Latent:
        """States [H, N] after each of the encoded actions [H, N, A] that are done from `start` [N] on."""
        inputs = self.run(p, "dyn", action, method="embed_action"), self.noise(key, action.shape[:-1])

        def step(latent, x):
            latent = self.imagine_step(p, latent, *x)
            return latent, latent

        return jax.lax.scan(step, start, inputs)[1]

    def policy_log_probs(self, p: Params, feature: jax.Array) -> jax.Array:
        """[..., A] of discrete actions."""
        return mix_uniform(self.run(p, "pol", feature), self.config.model.actor_unimix, p.get(ALLOWED))

    def choose(self, p: Params, feature: jax.Array, noise: jax.Array | float) -> jax.Array:
        """The policy's actions with noise [..., A] of `step_noise`; 0 for the most probable ones."""
        if isinstance(self.spaces.action, Discrete):
            return (self.policy_log_probs(p, feature) + noise).argmax(-1).astype(jnp.int32)
        mean, std = bounded_normal(self.run(p, "pol", feature))
        return mean + std * noise
