"""The learner as the loop sees it: init, act, update, validate, report, imagine."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.config import Config
from jaxrl.learners.dreamer import losses as L
from jaxrl.learners.dreamer import openloop
from jaxrl.learners.dreamer.model import ALLOWED, Latent, Model
from jaxrl.learners.optimizer import Optimizer, OptState, by_path, learning_rate, make_optimizer
from jaxrl.metrics import Last, Mean, Sum
from jaxrl.ops.recurrence import masked
from jaxrl.types import (
    ActOutput,
    Array,
    Batch,
    Continuous,
    Imagined,
    Key,
    Learner,
    Metrics,
    OpenLoop,
    Params,
    Spaces,
    Step,
    UpdateOutput,
)

POLICY = ("enc", "dyn", "pol")  # networks that acting needs
IMAGINE = ("dec", "rew", "con")  # networks that imagining needs beside these


@struct.dataclass(kw_only=True)
class DreamerState:
    params: Params  # f32, by network
    slow: Params  # slow critic, an average of params["val"]
    opt: OptState
    returns: L.ReturnRange
    allowed: Array | None = None  # [A] bool, see Spaces; constant


@struct.dataclass(kw_only=True)
class DreamerCarry:
    latent: Latent  # [N], state after the newest row
    action: jax.Array  # [N, A] f32, encoded action chosen there


@dataclasses.dataclass(frozen=True)
class Dreamer:
    """The functions of the bundle, bound to one config and one set of spaces."""

    model: Model

    @property
    def config(self) -> Config:
        return self.model.config

    @functools.cached_property
    def optimizer(self) -> Optimizer:
        return make_optimizer(self.config.opt)

    def init(self, key: Key) -> DreamerState:
        params = self.model.init(key)
        return DreamerState(
            params=params,
            slow=jax.tree.map(jnp.copy, params["val"]),
            opt=self.optimizer.init(params),
            returns=L.ReturnRange(low=jnp.zeros(()), high=jnp.zeros(())),
            allowed=self.model.spaces.allowed,
        )

    def initial_carry(self, n: int) -> DreamerCarry:
        return DreamerCarry(latent=self.model.zeros((n,)), action=jnp.zeros((n, self.model.action_width)))

    def act(self, p: Params, carry: DreamerCarry, step: Step, key: Key, mode: str) -> ActOutput:
        """The posterior is sampled in every mode, as in the reference; `mode` decides about the action."""
        model = self.model
        noise = model.step_noise(key, step.is_first.shape)
        tokens = model.run(p, "enc", step.obs)
        last_action = jnp.where(step.is_first[:, None], 0, carry.action)
        latent, _ = model.observe_step(
            p,
            masked(carry.latent, step.is_first),
            model.run(p, "dyn", last_action, method="embed_action"),
            model.run(p, "dyn", tokens, method="embed_tokens"),
            noise.stoch,
        )
        action = model.choose(p, latent.feature, 0.0 if mode == "mode" else noise.action)
        if isinstance(model.spaces.action, Continuous):
            action = jnp.clip(action, -1, 1)  # the recurrent model divides by max(1, |a|): the same to it
        carry = DreamerCarry(latent=latent, action=model.encode_action(action))
        return ActOutput(action, carry, model.store(latent))

    def loss(self, p: Params, state: DreamerState, batch: Batch, key: Key):
        """The scalar that is minimised, and (world model, behaviour, losses by name)."""
        key_observe, key_imagine = jax.random.split(key)
        p = with_allowed(p, state)
        observed = L.world_model(self.model, p, batch, key_observe)
        rows = jax.tree.map(lambda x: x[int(self.config.replay.context) :], batch)
        behaved = L.behavior(self.model, p, L.Critic(state.slow, state.returns), observed, rows, key_imagine)
        losses = observed.losses | behaved.losses
        return L.total(self.model, losses), (observed, behaved, losses)

    def update(self, state: DreamerState, batch: Batch, key: Key) -> UpdateOutput:
        """One gradient step on world model, actor and critic, skipped (and counted) if it is not finite.

        Args:
          state: donated by the caller; do not use it afterwards.
          batch: leaves [T + context, B, ...]; obs as in the spaces, reward f32 in env units.
          key: consumed.
        """
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (value, (observed, behaved, losses)), grads = grad(state.params, state, batch, key)
        params, opt, finite, stats = self.optimizer.descend(
            grads, state.opt, state.params, jnp.isfinite(value)
        )
        rate = self.config.loss.slow_rate
        rest = jax.tree.map(lambda s, v: s + rate * (v - s), state.slow, params["val"]), behaved.returns
        old = state.slow, state.returns
        slow, returns = jax.tree.map(lambda a, b: jnp.where(finite, a, b), rest, old)
        new = state.replace(params=params, slow=slow, opt=opt, returns=returns)
        scalars = {f"loss/{name}": x.mean() for name, x in losses.items()} | behaved.scalars
        scalars |= {"dyn_ent": observed.prior_entropy.mean(), "rep_ent": observed.posterior_entropy.mean()}
        scalars |= {"opt/loss": value, "opt/grad_norm": stats.grad_norm, "opt/grad_rms": stats.grad_rms}
        scalars |= {"opt/update_rms": stats.update_rms}
        metrics: Metrics = {f"train/{name}": Mean.of(x) for name, x in scalars.items()}
        metrics["train/opt/lr"] = Last.of(learning_rate(self.config.opt)(state.opt.count))
        metrics["train/opt/param_rms"] = Last.of(stats.param_rms)
        metrics["train/opt/skipped"] = Sum.of(1 - finite)
        # A bad batch must not reach replay either: other sequences start from these latents.
        fresh = self.model.store(observed.latent)
        latents = jax.tree.map(
            lambda a, b: jnp.where(finite, a, b[int(self.config.replay.context) :]), fresh, batch.latents
        )
        return UpdateOutput(state=new, metrics=metrics, latents=latents)

    def explain(self, state: DreamerState, batch: Batch, key: Key) -> dict[str, jax.Array]:
        """The numbers of an update by name, among them those that it would be skipped for."""
        grad = jax.value_and_grad(self.loss, has_aux=True)
        (_, (_, _, losses)), grads = grad(state.params, state, batch, key)
        latent = self.model.restore(batch.latents)  # stored as bits, in which nobody sees a NaN
        numbers = {"batch.latents.deter": latent.deter} | {f"loss/{name}": x for name, x in losses.items()}
        numbers |= {f"grad/{name}": x for name, x in by_path(grads).items()}
        return numbers | {f"param/{name}": x for name, x in by_path(state.params).items()}

    def validate(self, state: DreamerState, batch: Batch, key: Key) -> Metrics:
        """Losses of the world model on a batch that it does not learn from."""
        observed = L.world_model(self.model, state.params, batch, key)
        return {f"holdout/loss/{name}": Mean.of(x) for name, x in observed.losses.items()}

    def report(self, state: DreamerState, batch: Batch, key: Key) -> OpenLoop:
        """See openloop.report."""
        return openloop.report(self.model, state.params, batch, key)

    def imagine(self, p: Params, carry: DreamerCarry, actions: jax.Array, key: Key) -> Imagined:
        """See openloop.imagine. The action that acting has chosen at the newest row is not done."""
        encoded = self.model.encode_action(actions)
        latent, imagined = openloop.imagine(self.model, p, carry.latent, encoded, key)
        return imagined.replace(carry=DreamerCarry(latent=latent, action=jnp.zeros_like(carry.action)))


def with_allowed(p: Params, state: DreamerState) -> Params:
    """Parameters, and beside them which actions may be taken, where tasks share a set of them."""
    return p if state.allowed is None else p | {ALLOWED: state.allowed}


def make(config: Config, spaces: Spaces) -> Learner:
    """The bundle for a resolved config and the spaces of a task."""
    dreamer = Dreamer(Model(config, spaces))
    return Learner(
        init=dreamer.init,
        initial_carry=dreamer.initial_carry,
        act=dreamer.act,
        update=dreamer.update,
        validate=dreamer.validate,
        explain=dreamer.explain,
        report=dreamer.report if any(x.is_image for x in spaces.obs.values()) else None,
        imagine=dreamer.imagine,
        imagine_params=lambda state: {name: state.params[name] for name in IMAGINE},
        policy_params=lambda state: with_allowed({name: state.params[name] for name in POLICY}, state),
        latent_zeros=lambda: dreamer.model.store(dreamer.model.zeros(())),
        context=int(config.replay.context),
    )
