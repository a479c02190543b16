"""DrQ-v2 and DrQ(eps) once more, spelled out in float64 NumPy: networks, targets and losses, no gradients.

Parameters are the learner's trees as nested dicts of float64 arrays; observations are as in Transitions.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

LIMIT = 1 - 1e-6


def as_float64(tree):
    return {k: as_float64(x) if isinstance(x, dict) else np.asarray(x, np.float64) for k, x in tree.items()}


def relu(x):
    return np.maximum(x, 0)


def conv(x, p, stride):
    """Without padding; x [n, h, w, i], kernel [k, k, i, o]."""
    side = p["kernel"].shape[0]
    windows = sliding_window_view(x, (side, side), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("nhwcij,ijco->nhwo", windows, p["kernel"]) + p["bias"]


def conv_same(x, p, stride):
    """Padded so that h / stride rows come out, rounded up; what does not halve is padded at the end."""
    side, pads = p["kernel"].shape[0], []
    for size in x.shape[1:3]:
        total = max((-(-size // stride) - 1) * stride + side - size, 0)
        pads.append((total // 2, total - total // 2))
    return conv(np.pad(x, ((0, 0), *pads, (0, 0))), p, stride)


def features(p, obs, images, vectors, nature=False):
    """{"image": all cameras, flattened, one after another; "vector"}."""
    found = {}
    views = []
    for key in images:
        x = obs[key].astype(np.float64) / 255
        if nature:
            for i, stride in enumerate((4, 2, 1)):
                x = relu(conv_same(x, p[key][f"conv{i}"], stride))
        else:
            x = x - 0.5
            for i, stride in enumerate((2, 1, 1, 1)):
                x = relu(conv(x, p[key][f"conv{i}"], stride))
        views.append(x.reshape(len(x), -1))
    if views:
        found["image"] = np.concatenate(views, -1)
    if vectors:
        found["vector"] = np.concatenate([obs[k].astype(np.float64) for k in vectors], -1)
    return found


def linear(p, x):
    return x @ p["kernel"] + p["bias"]


def bottleneck(p, x):
    x = linear(p["linear"], x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return np.tanh(x * p["norm"]["scale"] + p["norm"]["bias"])


def trunk(p, seen):
    return np.concatenate([bottleneck(p[k], seen[k]) for k in sorted(seen)], -1)


def head(p, x):
    return linear(p["out"], relu(linear(p["hidden1"], relu(linear(p["hidden0"], x)))))


def critic(p, seen, action):
    """[2, B]."""
    x = np.concatenate([trunk(p["trunk"], seen), action], -1)
    return np.stack([head(p["q0"], x)[:, 0], head(p["q1"], x)[:, 0]])


def actor(p, seen):
    return np.tanh(head(p["head"], trunk(p["trunk"], seen)))


def dueling(p, seen):
    parts = [seen["image"]] if "image" in seen else []
    if "vector" in seen:
        parts.append(bottleneck(p["vector"], seen["vector"]))
    x = relu(linear(p["hidden"], np.concatenate(parts, -1)))
    advantage = linear(p["advantage"], x)
    return linear(p["value"], x) + advantage - advantage.mean(-1, keepdims=True)


def target_v2(p, slow, batch, noise, keys):
    """y = R + discount * min over heads of the target critic, at the policy's clamped noisy action."""
    seen = features(p["encoder"], batch.next_obs, *keys)
    action = np.clip(actor(p["actor"], seen) + noise, -LIMIT, LIMIT)
    return batch.reward + batch.discount * critic(slow, seen, action).min(0)


def critic_loss_v2(p, batch, y, keys):
    q = critic(p["critic"], features(p["encoder"], batch.obs, *keys), batch.action)
    return ((q - y) ** 2).mean(1).sum()


def actor_loss_v2(p_actor, p_critic, seen, noise, beyond):
    """`beyond` [B, A]: what clamping takes away, a constant, so that the gradient passes the clamp."""
    return -critic(p_critic, seen, actor(p_actor, seen) + noise - beyond).min(0).mean()


def target_eps(p, slow, batch, keys):
    """Double DQN: the online network chooses, the target network judges."""

    def values(p):
        return dueling(p["critic"], features(p["encoder"], batch.next_obs, *keys, nature=True))

    best = values(p).argmax(-1)
    return batch.reward + batch.discount * values(slow)[np.arange(len(best)), best]


def loss_eps(p, batch, y, keys):
    """Huber loss: half the square up to errors of 1, then with slope 1."""
    q = dueling(p["critic"], features(p["encoder"], batch.obs, *keys, nature=True))
    error = np.abs(q[np.arange(len(y)), batch.action] - y)
    return np.where(error <= 1, error**2 / 2, error - 0.5).mean()
