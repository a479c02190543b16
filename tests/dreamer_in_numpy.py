"""DreamerV3 for vector observations once more, in float64 NumPy, loop by loop, for tests.

Nothing here comes from jaxrl. Sampling is not repeated: latents and actions are given, and what must follow
from them (next states, distributions, losses) is worked out. Parameters are the learner's tree as NumPy.
"""

import numpy as np

BINS = np.concatenate([-np.expm1(np.linspace(20, 0, 128)), np.expm1(np.linspace(0, 20, 128))[1:]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def symlog(x):
    return np.sign(x) * np.log(1 + np.abs(x))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def norm_silu(p, x):
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-4)
    return silu(x * p["norm"]["scale"])


def mlp(p, x, layers):
    for i in range(layers):
        x = norm_silu(p[f"act{i}"], dense(p[f"dense{i}"], x))
    return x


def head(p, x, layers):
    return dense(p["out"], mlp(p["mlp"], x, layers))


def blocks_of(x, g):
    return np.split(x, g, -1)


def core(p, deter, stoch, action, g):
    """The block GRU, block by block."""
    action = action / np.maximum(1, np.abs(action))
    x = [
        norm_silu(p[f"in_{name}_act"], dense(p[f"in_{name}_dense"], value))
        for name, value in (("deter", deter), ("stoch", stoch), ("action", action))
    ]
    parts = [
        np.concatenate([part, *x], -1) @ p["mix"]["kernel"][b] for b, part in enumerate(blocks_of(deter, g))
    ]
    hidden = norm_silu(p["mix_act"], np.concatenate(parts, -1) + p["mix"]["bias"])
    parts, biases = [], blocks_of(p["gates"]["bias"], g)
    for b, (part, old) in enumerate(zip(blocks_of(hidden, g), blocks_of(deter, g), strict=True)):
        reset, candidate, update = np.split(part @ p["gates"]["kernel"][b] + biases[b], 3, -1)
        candidate = np.tanh(sigmoid(reset) * candidate)
        update = sigmoid(update - 1)
        parts.append(update * candidate + (1 - update) * old)
    return np.concatenate(parts, -1)


def mixed(logits, share):
    return np.log((1 - share) * softmax(logits) + share / logits.shape[-1])


def latent_log_probs(c, logits):
    return mixed(logits.reshape(*logits.shape[:-1], c.stoch, -1), c.unimix)


def prior(c, p, deter):
    return latent_log_probs(c, dense(p["prior_out"], mlp(p["prior"], deter, 2)))


def posterior(c, p, deter, tokens):
    x = norm_silu(p["post_act"], dense(p["post"], np.concatenate([deter, tokens], -1)))
    return latent_log_probs(c, dense(p["post_out"], x))


def encode(p, obs):
    vectors = np.concatenate([symlog(obs[key]) for key in sorted(obs)], -1)
    return mlp(p["vector"], vectors, 3)


def reconstruction(p, deter, stoch, obs):
    x = mlp(p["vector"], np.concatenate([stoch, deter], -1), 3)
    return {key: ((dense(p[f"out_{key}"], x) - symlog(obs[key])) ** 2).sum(-1) for key in obs}


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(-1).sum(-1)


def entropy(p):
    return -(np.exp(p) * p).sum(-1)


def twohot(value):
    """Weights of one number."""
    value = np.clip(value, BINS[0], BINS[-1])
    above = min(max(int(np.searchsorted(BINS, value)), 1), len(BINS) - 1)
    share = (BINS[above] - value) / (BINS[above] - BINS[above - 1])
    out = np.zeros(len(BINS))
    out[above - 1], out[above] = share, 1 - share
    return out


def cross_entropy(logits, values):
    target = np.stack([twohot(v) for v in values.ravel()]).reshape(*values.shape, -1)
    return -(target * np.log(softmax(logits))).sum(-1)


def mean_of(logits):
    return softmax(logits) @ BINS


def world_model(c, p, rows, deter, stoch):
    """Losses [T, B] by name and entropies, from the posterior states of the rows."""
    feature = np.concatenate([deter, stoch], -1)
    post = posterior(c, p["dyn"], deter, encode(p["enc"], rows.obs))
    before = prior(c, p["dyn"], deter)
    losses = {f"rec/{k}": v for k, v in reconstruction(p["dec"], deter, stoch, rows.obs).items()}
    losses["rew"] = cross_entropy(head(p["rew"], feature, 1), rows.reward)
    alive = np.where(rows.is_terminal, 0.0, c.gamma if c.contdisc else 1.0)
    chance = sigmoid(head(p["con"], feature, 1)[..., 0])
    losses["con"] = -alive * np.log(chance) - (1 - alive) * np.log(1 - chance)
    losses["dyn"] = losses["rep"] = np.maximum(c.free_nats, kl(post, before))
    return losses, {"dyn_ent": entropy(before).sum(-1).mean(), "rep_ent": entropy(post).sum(-1).mean()}


def policy(c, p, feature, action):
    """log p(action) and entropy."""
    raw = head(p, feature, 3)
    if c.discrete:
        log_probs = mixed(raw, c.actor_unimix)
        return np.take_along_axis(log_probs, action[..., None], -1)[..., 0], entropy(log_probs)
    mean, std = np.split(raw, 2, -1)
    mean, std = np.tanh(mean), 0.1 + 0.9 * sigmoid(std + 2)
    density = np.exp(-0.5 * ((action - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    return np.log(density).sum(-1), (0.5 * np.log(2 * np.pi * np.e * std**2)).sum(-1)


def behavior(c, p, slow, returns, imagined, rows):
    """Losses by name, new percentiles (low, high) and metrics.

    imagined: deter, stoch [H+1, N, ...], action [H, N, ...], where N = T B in the order of the rows.
    """
    deter, stoch, action = imagined
    feature, horizon, steps = np.concatenate([deter, stoch], -1), len(action), rows.reward.shape
    reward = mean_of(head(p["rew"], feature, 1))
    discount = sigmoid(head(p["con"], feature, 1)[..., 0]) * (1.0 if c.contdisc else c.gamma)
    logits, slow_value = head(p["val"], feature, 3), mean_of(head(slow, feature, 3))
    value = mean_of(logits)
    target = slow_value if c.slow_target else value
    ret = np.zeros((horizon, feature.shape[1]))
    for t in reversed(range(horizon)):
        later = target[t + 1] if t == horizon - 1 else ret[t + 1]
        ret[t] = reward[t + 1] + discount[t + 1] * ((1 - c.lam) * target[t + 1] + c.lam * later)
    weight = np.array([np.prod(discount[: t + 1], 0) for t in range(horizon)])
    weight = weight / (1.0 if c.contdisc else c.gamma)
    low, high = (
        old + c.rate * (np.percentile(ret, q) - old) for old, q in zip(returns, (5, 95), strict=True)
    )
    scale = max(c.limit, high - low)
    advantage = (ret - target[:horizon]) / scale
    log_prob, ent = policy(c, p["pol"], feature[:horizon], action)
    losses = {"policy": -weight * (log_prob * advantage + c.entropy * ent)}
    losses["value"] = weight * critic(c, logits[:horizon], ret, slow_value[:horizon])
    # replayed states: the imagined return from each is what a cut or the end of the sequence leaves open
    boot = ret[0].reshape(steps[::-1]).T  # sequence after sequence
    replayed = np.zeros((steps[0] - 1, steps[1]))
    for t in reversed(range(steps[0] - 1)):
        later = boot[t + 1] if t == steps[0] - 2 else replayed[t + 1]
        mixture = np.where(rows.is_last[t + 1], boot[t + 1], (1 - c.lam) * boot[t + 1] + c.lam * later)
        replayed[t] = rows.reward[t + 1] + np.where(rows.is_terminal[t + 1], 0, c.gamma * mixture)
    logits = logits[0].reshape(*steps[::-1], -1).swapaxes(0, 1)[:-1]
    loss = critic(c, logits, replayed, slow_value[0].reshape(steps[::-1]).T[:-1])
    losses["repval"] = np.where(rows.is_last[:-1], 0, loss)
    normed = (ret - low) / scale
    metrics = {
        "adv": advantage.mean(),
        "adv_std": advantage.std(),
        "adv_mag": np.abs(advantage).mean(),
        "ret": normed.mean(),
        "ret_min": normed.min(),
        "ret_max": normed.max(),
        "ret_rate": (np.abs(normed) >= 1).mean(),
        "ret_scale": scale,
        "val": value.mean(),
        "tar": ret.mean(),
        "slowval": slow_value.mean(),
        "weight": weight.mean(),
        "ent/action": ent.mean(),
    }
    return losses, (low, high), metrics


def critic(c, logits, target, slow):
    return cross_entropy(logits, target) + c.slow_reg * cross_entropy(logits, slow)
