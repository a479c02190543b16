"""What several devices make of the same work, as JSON: run by test_devices.py where a CPU poses as eight."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import learners
from jaxrl.assembly import feed_of
from jaxrl.config import Config, replace
from jaxrl.feeds.ring import Ring
from jaxrl.layout import Layout
from jaxrl.parts import Parts, batch_shapes
from jaxrl.placement import RING, Placement
from jaxrl.runtime import Machine, compiler_options
from jaxrl.types import ArraySpec, Continuous, Discrete, Spaces

COUNTS = (1, 2, 4, 8)
DREAMER = {"model.size": "debug", "batch_size": 8, "batch_length": 6, "loss.horizon": 4, "opt.warmup": 0}
DRQ = {"agent": "drq", "batch_size": 16, "drq.features": 8, "drq.hidden": 16, "drq.channels": 4}
COLLECTIVE = re.compile(r" = (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\(")
ARRAY = re.compile(r"\b([a-z]+)(\d+)\[([\d,]*)\]")


def parts_of(changes: dict[str, object], count: int) -> Parts:
    """A run with pictures whose 8 environments are divided over `count` devices."""
    config = replace(Config(), {"model.compute_dtype": "float32", "env.num_envs": 8, **changes})
    action = Continuous(3) if config.agent == "drq" else Discrete(4)
    spaces = Spaces(obs={"image": ArraySpec((48, 48, 3), np.dtype(np.uint8))}, action=action)
    learner, layout = learners.make(config, spaces), Layout(tuple(jax.devices()[:count]))
    return Parts(
        config=config,
        learner=learner,
        replay=feed_of(config, learner, spaces, 24),
        held=None,
        batched=None,
        machine=Machine(layout, layout.devices[0], "cpu", "cpu"),
        eval_envs=2,
        key=jax.device_put(jax.random.key(0), layout.whole),
    )


def drawn(shapes: object, seed: int) -> object:
    """Arrays of these shapes with numbers that pictures, actions, rewards and flags may have."""
    draw = np.random.default_rng(seed)

    def array(x):
        if x.dtype == jnp.bool_:
            return draw.random(x.shape) < 0.1
        if jnp.issubdtype(x.dtype, jnp.floating):
            return draw.uniform(-1, 1, x.shape).astype(x.dtype)
        return draw.integers(0, 4 if x.dtype == jnp.int32 else 200, x.shape).astype(x.dtype)

    return jax.tree.map(array, shapes)


def updated(parts: Parts) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Losses, gradients and metrics of three updates with the same batches and keys; facts of their program.

    Each begins with the first parameters: normalised steps would turn what rounding makes of a gradient of
    nearly zero into whole steps.
    """
    place, learner = Placement(parts), parts.learner
    state = jax.jit(learner.init, out_shardings=place.whole)(parts.key)
    shapes = batch_shapes(parts.replay, parts.key)
    batches = [drawn(shapes, i) for i in range(3)]
    if parts.config.agent == "dreamer":  # stored latents are bits and classes
        blank = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes.latents)
        batches = [batch.replace(latents=blank) for batch in batches]
    there = jax.tree.broadcast(place.batch(parts.replay), shapes)
    batches = [jax.device_put(batch, there) for batch in batches]
    update = compiled(learner.update, state, batches[0], parts.key)
    explain = compiled(learner.explain, state, batches[0], parts.key)
    found = {}
    for i, batch in enumerate(batches):
        key = jax.device_put(jax.random.key(i), place.whole)
        metrics = update(state, batch, key).metrics
        found |= {f"{i} {name}": x.total for name, x in metrics.items() if hasattr(x, "total")}
        found |= {f"{i} {name}": x for name, x in explain(state, batch, key).items()}
    facts = {
        "flops": update.cost_analysis()["flops"],
        "temp": update.memory_analysis().temp_size_in_bytes,
        "sent": sent(update),
        "parameters": sum(x.size * 4 for x in jax.tree.leaves(state.params)),
    }
    return {k: np.asarray(x, np.float64) for k, x in found.items()}, facts


def fixed_flops(changes: dict[str, object]) -> float:
    """Of an update, whatever its batch: what two batches cost beyond twice the half of them."""
    costs = []
    for scale in (1, 2):
        parts = parts_of(changes | {"batch_size": scale * changes["batch_size"]}, 1)
        state = jax.eval_shape(parts.learner.init, parts.key)
        program = compiled(parts.learner.update, state, batch_shapes(parts.replay, parts.key), parts.key)
        costs.append(program.cost_analysis()["flops"])
    return 2 * costs[0] - costs[1]


def compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile(compiler_options=compiler_options("cpu"))


def sent(program) -> dict[str, int]:
    """Bytes that go between devices in one run of a program, by kind."""
    found: dict[str, int] = {}
    for shape, kind in COLLECTIVE.findall(program.as_text()):
        for _, bits, dims in ARRAY.findall(shape):
            n = int(np.prod([int(n) for n in dims.split(",") if n]))
            found[kind] = found.get(kind, 0) + n * (int(bits) if bits else 8) // 8
    return found


def difference(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute difference of each array, relative to its largest number or to 1e-3."""
    assert found.keys() == wanted.keys()
    return {k: float(np.abs(found[k] - wanted[k]).max() / max(np.abs(wanted[k]).max(), 1e-3)) for k in wanted}


def rings(parts: Parts) -> dict[str, object]:
    """A ring that is filled and drawn from on several devices, against each share of it on one device."""
    place, feed, n = Placement(parts), parts.replay, parts.machine.count
    divided = place.feed(feed)
    ring, alone = jax.jit(feed.init, out_shardings=place.ring)(), feed.init()
    insert, plain = jax.jit(divided.insert, out_shardings=place.ring), jax.jit(feed.insert)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((feed.streams, *x.shape), x.dtype), feed.row_shapes()
    )
    for i in range(30):  # more than fit
        row, where = drawn(shapes, i), np.arange(feed.streams) != i % 3
        ring, alone = insert(ring, row, where), plain(alone, row, where)
    found: dict[str, object] = {"inserted": same(ring, alone)}
    key = jax.random.key(7)
    sample = compiled(divided.sample, ring, jax.device_put(key, place.whole), jnp.int32(9))
    ring, batch, window = sample(ring, jax.device_put(key, place.whole), jnp.int32(9))
    own = jax.jit(divided.own.sample)
    shares = [own(share_of(alone, i, n), jax.random.fold_in(key, i), jnp.int32(9)) for i in range(n)]
    axes = jax.tree.broadcast(feed.batch_axes, batch)
    put_together = jax.tree.map(
        lambda axis, *xs: np.concatenate(xs, axis) if axis >= 0 else xs[0], axes, *[x[1] for x in shares]
    )
    found |= {"drawn": same(batch, put_together), "sent": sent(sample)}
    if parts.config.agent == "dreamer":
        latents = drawn(jax.tree.map(lambda x: x[1:], batch.latents), 5)
        ring = jax.jit(divided.write_latents, out_shardings=place.ring)(ring, window, latents)
        write = jax.jit(divided.own.write_latents)
        found["written"] = all(
            same(write(shares[i][0], shares[i][2], share), share_of(ring, i, n))
            for i, share in enumerate(split(latents, n))
        )
    return found


def split(latents, n: int) -> list:
    """Latents [T, B, ...] by devices."""
    pieces = jax.tree.map(lambda x: np.split(x, n, 1), latents)
    return [
        jax.tree.map(lambda x, i=i: x[i], pieces, is_leaf=lambda x: isinstance(x, list)) for i in range(n)
    ]


def same(one, other) -> bool:
    """Whether all arrays of two trees have the same bits."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all((np.asarray(a) == np.asarray(b)).all() for a, b in pairs)


def share_of(ring: Ring, i: int, n: int) -> Ring:
    """The streams of the i-th of n devices."""
    axes = jax.tree.broadcast(RING, ring)
    return jax.tree.map(lambda x, axis: np.split(np.asarray(x), n, axis)[i], ring, axes)


def main() -> None:
    found: dict[str, dict] = {}
    for name, changes in (("dreamer", DREAMER), ("drq", DRQ)):
        found[name], alone = {"update": {}, "program": {}, "rings": {}}, None
        found[name]["fixed"] = fixed_flops(changes)
        for count in COUNTS:
            parts = parts_of(changes, count)
            numbers, found[name]["program"][count] = updated(parts)
            alone = numbers if alone is None else alone
            found[name]["update"][count] = difference(numbers, alone)
            if count > 1:
                found[name]["rings"][count] = rings(parts)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
