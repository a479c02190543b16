"""Losses of the world model, the actor and the critic: each per element, scaled and averaged in one place.

Gradients are routed by stop-gradients only; one backward pass serves all networks.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxrl.learners.dreamer.model import Latent, Model
from jaxrl.nets.encoder import split_keys
from jaxrl.ops.conv import fold
from jaxrl.ops.distributions import (
    STD_BOUNDS,
    binary_cross_entropy,
    bounded_normal,
    categorical_entropy,
    categorical_kl,
    log_prob_of,
    normal_entropy,
    normal_log_prob,
)
from jaxrl.ops.lead import apart, joined
from jaxrl.ops.returns import discount_weights, lambda_return, replay_return
from jaxrl.ops.scaling import symexp_bins, symlog, twohot, twohot_mean
from jaxrl.types import Batch, Discrete, Key, Params

sg = jax.lax.stop_gradient


@struct.dataclass(kw_only=True)
class ReturnRange:
    """Moving percentiles of imagined returns, for scaling advantages."""

    low: jax.Array  # [] f32
    high: jax.Array  # [] f32


class Critic(NamedTuple):
    """What moves slowly beside the parameters."""

    slow: Params  # of the slow critic
    returns: ReturnRange


@struct.dataclass(kw_only=True)
class Observed:
    """What the world model makes of a batch; the context row is gone: leaves [T, B, ...]."""

    latent: Latent
    losses: dict[str, jax.Array]  # [T, B] each
    prior_entropy: jax.Array  # [T, B] nats
    posterior_entropy: jax.Array  # [T, B] nats


def world_model(model: Model, p: Params, batch: Batch, key: Key) -> Observed:
    """Posterior states of the batch's rows and the losses `rec/<key>`, rew, con, dyn, rep."""
    config = model.config.loss
    carry, action, rows = opened(model, batch)
    tokens = model.run(p, "enc", rows.obs)
    latent, posterior = model.observe(p, carry, tokens, action, rows.is_first, key)
    prior = model.run(p, "dyn", latent.deter, method="prior")
    losses = reconstruction(model, p, latent, rows)
    feature = latent.feature
    reward = model.run(p, "rew", feature if config.reward_grad else sg(feature))
    losses["rew"] = cross_entropy(reward, twohot(rows.reward, bins(model)))
    alive = (1.0 - rows.is_terminal) * (gamma(model) if config.contdisc else 1.0)
    losses["con"] = binary_cross_entropy(model.run(p, "con", feature)[..., 0], alive)
    losses["dyn"] = jnp.maximum(config.free_nats, categorical_kl(sg(posterior), prior))
    losses["rep"] = jnp.maximum(config.free_nats, categorical_kl(posterior, sg(prior)))
    chex.assert_equal_shape([rows.reward, *losses.values()])
    return Observed(
        latent=latent,
        losses=losses,
        prior_entropy=categorical_entropy(prior).sum(-1),
        posterior_entropy=categorical_entropy(posterior).sum(-1),
    )


def opened(model: Model, batch: Batch) -> tuple[Latent, jax.Array, Batch]:
    """How sequences begin, and what they go on with.

    With one context row, the carry is the latent stored at row 0, and rows 1 to T are left; without,
    sequences start from zeros and all rows are left.

    Returns:
      State [B] before the rows, encoded action [T, B, A] that led to each, rows [T, B].
    """
    action = model.encode_action(batch.action)
    if model.config.replay.context:
        carry = model.restore(jax.tree.map(lambda x: x[0], batch.latents))
        return carry, action[:-1], jax.tree.map(lambda x: x[1:], batch)
    action = jnp.concatenate([jnp.zeros_like(action[:1]), action[:-1]])
    is_first = jnp.asarray(batch.is_first).at[0].set(True)
    return model.zeros(is_first.shape[1:]), action, batch.replace(is_first=is_first)


def reconstruction(model: Model, p: Params, latent: Latent, rows: Batch) -> dict[str, jax.Array]:
    """Squared errors summed over each observation, by `rec/<key>`: [T, B] each."""
    predicted = model.run(p, "dec", latent.deter, latent.stoch)
    images, vectors = split_keys(model.spaces.obs)
    losses = {}
    for key in vectors:
        losses[f"rec/{key}"] = jnp.square(predicted[key] - symlog(rows.obs[key])).sum(-1)
    if images:
        # The squared error is summed, so it may be taken in the decoder's folded layout.
        lead, folded = latent.deter.shape[:2], predicted["folded"]
        folded = folded.reshape(*folded.shape[:-1], 4, -1)
        start = 0
        for key in images:
            image = rows.obs[key]
            channels = image.shape[-1]
            target = fold(joined(image, 2))
            target = apart(target.reshape(*target.shape[:-1], 4, channels), lead)
            error = folded[..., start : start + channels] - target.astype(jnp.float32) / 255
            losses[f"rec/{key}"] = jnp.square(error).sum((2, 3, 4, 5))
            start += channels
    return losses


@struct.dataclass(kw_only=True)
class Behaved:
    """What the actor and critic make of imagination."""

    losses: dict[str, jax.Array]  # policy, value: [H, N]; repval: [T-1, B]
    returns: ReturnRange
    scalars: dict[str, jax.Array]  # for metrics


def behavior(model: Model, p: Params, critic: Critic, observed: Observed, rows: Batch, key: Key) -> Behaved:
    """Policy and value losses on imagined rollouts from every replayed state, and the replay value loss.

    Args:
      rows: the batch without its context row, leaves [T, B, ...].
    """
    config = model.config.loss
    lead = rows.reward.shape
    start = jax.tree.map(lambda x: joined(x, 2), observed.latent)
    latent, action = model.imagine(p, start, key, config.horizon)
    feature = sg(latent.feature)  # [H+1, N, F]
    b = bins(model)
    reward = twohot_mean(model.run(sg(p), "rew", feature), b)
    alive = jax.nn.sigmoid(model.run(sg(p), "con", feature)[..., 0])
    discount = alive if config.contdisc else gamma(model) * alive
    value_logits = model.run(p, "val", feature)
    value = sg(twohot_mean(value_logits, b))
    slow_value = twohot_mean(model.run({"val": critic.slow}, "val", feature), b)
    target_value = slow_value if config.slow_target else value
    ret = lambda_return(reward[1:], discount[1:], target_value[1:], config.lam)  # [H, N]
    weight = discount_weights(discount)[:-1] / (1.0 if config.contdisc else gamma(model))
    returns, scale = scaled_range(model, critic.returns, ret)
    advantage = (ret - target_value[:-1]) / scale
    log_prob, entropy, (least, most) = policy_terms(model, p, feature[:-1], action)
    losses = {
        "policy": -sg(weight) * (log_prob * sg(advantage) + config.entropy * entropy),
        "value": sg(weight) * critic_loss(model, value_logits[:-1], ret, slow_value[:-1]),
    }
    # Replayed states: the imagined return from each is its bootstrap; gradients reach the world model.
    feature = observed.latent.feature if config.repval_grad else sg(observed.latent.feature)
    boot = apart(ret[0], lead)
    ret_replay = replay_return(rows.reward, rows.is_last, rows.is_terminal, boot, gamma(model), config.lam)
    logits = model.run(p, "val", feature)[:-1]
    slow_replay = apart(slow_value[0], lead)[:-1]
    losses["repval"] = (1.0 - rows.is_last[:-1]) * critic_loss(model, logits, ret_replay, slow_replay)
    normed = (ret - returns.low) / scale
    scalars = {
        "adv": advantage.mean(),
        "adv_std": advantage.std(),
        "adv_mag": jnp.abs(advantage).mean(),
        "rew": reward[1:].mean(),
        "con": alive[1:].mean(),
        "ret": normed.mean(),
        "ret_min": normed.min(),
        "ret_max": normed.max(),
        "ret_rate": (jnp.abs(normed) >= 1).mean(),
        "ret_scale": scale,
        "val": value.mean(),
        "tar": ret.mean(),
        "slowval": slow_value.mean(),
        "weight": weight.mean(),
        "ent/action": entropy.mean(),
        "rand/action": (entropy.mean() - least) / (most - least),
    }
    return Behaved(losses=losses, returns=returns, scalars=scalars)


def critic_loss(model: Model, logits: jax.Array, target: jax.Array, slow: jax.Array) -> jax.Array:
    """CE(logits, target) + slow_reg CE(logits, slow): one product, since both are linear in the target."""
    b = bins(model)
    return cross_entropy(logits, twohot(sg(target), b) + model.config.loss.slow_reg * twohot(sg(slow), b))


def policy_terms(model: Model, p: Params, feature: jax.Array, action: jax.Array):
    """Log-probabilities of the actions [H, N], entropies [H, N], least and most possible entropy, nats."""
    raw = model.run(p, "pol", feature)
    if isinstance(model.spaces.action, Discrete):
        log_probs, bounds = model.policy_log_probs(raw), (0.0, jnp.log(raw.shape[-1]))
        return log_prob_of(log_probs, sg(action)), categorical_entropy(log_probs), bounds
    mean, std = bounded_normal(raw)
    bounds = tuple(normal_entropy(jnp.full_like(std[0, 0], x)) for x in STD_BOUNDS)
    return normal_log_prob(mean, std, sg(action)), normal_entropy(std), bounds


def scaled_range(model: Model, returns: ReturnRange, ret: jax.Array) -> tuple[ReturnRange, jax.Array]:
    """Percentiles moved towards those of this batch, and the scale to divide advantages by."""
    config = model.config.loss
    low, high = jnp.percentile(ret, jnp.array([config.return_low, config.return_high]))
    returns = ReturnRange(
        low=returns.low + config.return_rate * (low - returns.low),
        high=returns.high + config.return_rate * (high - returns.high),
    )
    return sg(returns), sg(jnp.maximum(config.return_limit, returns.high - returns.low))


def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """-Σ target ln softmax(logits) over the last axis."""
    return -(target * jax.nn.log_softmax(logits)).sum(-1)


def bins(model: Model) -> jax.Array:
    """[K] f32, values of the reward and value bins."""
    return jnp.asarray(symexp_bins(model.config.model.bins))


def gamma(model: Model) -> float:
    """Discount per row, 1 - 1 / discount_horizon."""
    return 1 - 1 / model.config.loss.discount_horizon


def total(model: Model, losses: dict[str, jax.Array]) -> jax.Array:
    """Σ scale · mean over elements, the scalar that is minimised."""
    config = model.config.loss
    terms = [getattr(config, name.split("/")[0]) * loss.mean() for name, loss in losses.items()]
    return jnp.stack(terms).sum()
