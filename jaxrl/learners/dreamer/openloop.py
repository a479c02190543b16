"""What the world model expects to see: of recorded sequences, and after actions that somebody asks about."""

import jax
import jax.numpy as jnp

from jaxrl.learners.dreamer import losses as L
from jaxrl.learners.dreamer.model import Latent, Model
from jaxrl.nets.encoder import split_keys
from jaxrl.ops.conv import unfold
from jaxrl.ops.scaling import symexp, twohot_mean
from jaxrl.types import Batch, Imagined, Key, OpenLoop, Params

SEQUENCES = 6  # of a batch that are looked at


def report(model: Model, p: Params, batch: Batch, key: Key) -> OpenLoop:
    """Reconstructions of the first half of sequences, and what the model imagines of the second.

    Of the T rows without context, T // 2 (one at least) are seen: theirs are the posterior states of
    `losses.world_model`. From the last of them on the model is given the true actions and nothing else. Where
    an episode begins in the second half, it is not told so: it goes on as if the old one had not ended, and
    what it shows beside the new one means nothing.

    Args:
      batch: as for an update, leaves [T + context, B, ...]; its first six sequences are used.
      key: consumed; the first half gets the first of `split(key)`.

    Source: dreamerv3 agent.py (2026), `report`.
    """
    carry, action, rows = L.opened(model, jax.tree.map(lambda x: x[:, :SEQUENCES], batch))
    n = max(1, rows.reward.shape[0] // 2)
    key_observe, key_imagine = jax.random.split(key)
    seen = jax.tree.map(lambda x: x[:n], (rows.obs, rows.is_first))
    tokens = model.run(p, "enc", seen[0])
    observed, _ = model.observe(p, carry, tokens, action[:n], seen[1], key_observe)
    imagined = model.follow(p, jax.tree.map(lambda x: x[-1], observed), action[n:], key_imagine)
    latent = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), observed, imagined)
    images, _ = split_keys(model.spaces.obs)
    shown = decoded(model, p, latent)
    return OpenLoop(
        truth={name: rows.obs[name] for name in images},
        model={name: shown[name] for name in images},
        observed=n,
    )


def imagine(model: Model, p: Params, start: Latent, action: jax.Array, key: Key) -> tuple[Latent, Imagined]:
    """What comes of actions, as the model expects it.

    Nothing ends an imagined episode: where the continuation is small, what follows it has no meaning.

    Args:
      p: of the networks dyn, dec, rew, con; others may be there.
      start: [N] state after the newest row.
      action: [H, N, A] encoded actions, H >= 1, the first of which is done at that row.
      key: consumed.

    Returns:
      State [N] after the last action; what is imagined, without a carry.
    """
    latent = model.follow(p, start, action, key)
    feature = latent.feature
    alive = jax.nn.sigmoid(model.run(p, "con", feature)[..., 0])
    if model.config.loss.contdisc:  # the head has learned the product
        alive = jnp.minimum(alive / L.gamma(model), 1)
    reward = twohot_mean(model.run(p, "rew", feature), L.bins(model))
    imagined = Imagined(obs=decoded(model, p, latent), reward=reward, continuation=alive, carry=())
    return jax.tree.map(lambda x: x[-1], latent), imagined


def decoded(model: Model, p: Params, latent: Latent) -> dict[str, jax.Array]:
    """What states [T, B] look like, as the environment would show it: images u8 (rounded), vectors f32."""
    predicted = model.run(p, "dec", latent.deter, latent.stoch)
    images, vectors = split_keys(model.spaces.obs)
    found = {key: symexp(predicted[key]) for key in vectors}
    if images:
        folded = predicted["folded"]
        lead, side = folded.shape[:-3], folded.shape[-3:-1]
        phases = jnp.round(folded * 255).astype(jnp.uint8).reshape(-1, *side, 4, folded.shape[-1] // 4)
        start = 0
        for key in images:
            h, w, c = model.spaces.obs[key].shape
            own = phases[..., start : start + c].reshape(-1, *side, 4 * c)
            found[key] = unfold(own).reshape(*lead, h, w, c)
            start += c
    return found
