"""Whole runs in small: a learner that compiles in a moment, and readers of what a run leaves behind.

The learner stands for the real one in everything that the loop, replay and checkpoints see: parameters,
recurrent state, context, refreshed latents, noise, metrics, validation. Its parameters depend on every
row, flag and key that reach it, so that the smallest deviation of a run shows in the last checkpoint.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import checkpoint, glossary, learners, train
from jaxrl.metrics import Mean, Sum
from jaxrl.stores import Checkpoint, find
from jaxrl.types import ActOutput, Discrete, Learner, UpdateOutput

WIDTH = 4
ROOT = pathlib.Path(__file__).parents[1]

# toy_clock with the smallest sizes; the ring is smaller than a run, so that it wraps in most tests.
TINY = (
    "--config=debug",
    "--batch_size=2",
    "--batch_length=4",
    "--train_ratio=2",
    "--replay.capacity=48",
    "--env.size=48",
    "--eval_eps=2",
    "--terminal.style=off",
    "--plot.enabled=false",
    "--tensorboard.enabled=false",
)


@struct.dataclass
class State:
    params: Any  # a dict of weights
    version: jax.Array  # [] i32, updates made


@dataclasses.dataclass(frozen=True)
class Fault:
    """A number that the small learner's updates from `first` to `last` (counted from 0) come upon."""

    place: str  # "loss", "grad" (of one tensor, while the loss is finite) or "metric" (neither)
    value: float = float("nan")
    first: int = 0
    last: int = 10**9


def make_learner(config, spaces, fault: Fault | None = None) -> Learner:
    """The small learner. With opt.lr >= 0.5 it skips every update, as one that has diverged would."""
    actions = spaces.action.n if isinstance(spaces.action, Discrete) else spaces.action.size
    size = sum(spec.shape[-1] for spec in spaces.obs.values())
    lr = config.opt.lr

    def init(key):
        names = {"in": (size, WIDTH), "out": (WIDTH, actions), "reward": (WIDTH,)}
        keys = jax.random.split(key, len(names))
        params = {n: jax.random.normal(k, s) / 4 for k, (n, s) in zip(keys, names.items(), strict=True)}
        return State(params, jnp.int32(0))

    def remember(params, h, obs, is_first):
        """The recurrent state [..., WIDTH] after a row."""
        seen = [x.mean((-3, -2)) / 255 if x.dtype == jnp.uint8 else x / 10 for x in obs.values()]
        h = jnp.where(is_first[..., None], 0, h)
        return jnp.tanh(h / 2 + jnp.concatenate(seen, -1) @ params["in"])

    def act(policy, carry, step, key, mode):
        h = remember(policy.params, carry, step.obs, step.is_first)
        logits = 3 * h @ policy.params["out"]
        if isinstance(spaces.action, Discrete):
            draw = jax.random.categorical(key, logits)
            action = (logits.argmax(-1) if mode == "mode" else draw).astype(jnp.int32)
        else:
            action = jnp.tanh(logits + (mode != "mode") * jax.random.normal(key, logits.shape))
        version = jnp.full(step.reward.shape, policy.version)
        return ActOutput(action, h, {"h": h.astype(jnp.bfloat16), "version": version})

    def loss(params, batch, key):
        def back(h, row):
            h = remember(params, h, row[0], row[1])
            return h, h

        start = batch.latents["h"][0].astype(jnp.float32)
        _, h = jax.lax.scan(back, start, jax.tree.map(lambda x: x[1:], (batch.obs, batch.is_first)))
        want = batch.reward[1:] + batch.is_last[1:] + 2 * batch.is_terminal[1:]
        want += batch.action[1:].astype(jnp.float32).reshape(*want.shape, -1).mean(-1)
        miss = h @ params["reward"] + 0.1 * jax.random.normal(key, want.shape) - want
        return jnp.square(miss).mean(), h

    def faulty(place, x, version):
        """x, or the value of the fault where it is to happen."""
        if fault is None or fault.place != place:
            return x
        return jnp.where((version >= fault.first) & (version <= fault.last), fault.value, x)

    def gradients(state, batch, key):
        (value, h), grads = jax.value_and_grad(loss, has_aux=True)(state.params, batch, key)
        grads["out"] = faulty("grad", grads["out"], state.version)
        return faulty("loss", value, state.version), h, grads

    def update(state, batch, key):
        value, h, grads = gradients(state, batch, key)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in grads.values()))
        skipped = (lr >= 0.5) | ~jnp.isfinite(value) | ~jnp.isfinite(norm)
        params = jax.tree.map(lambda p, g: jnp.where(skipped, p, p - 100 * lr * g), state.params, grads)
        h = jnp.where(skipped, batch.latents["h"][1:], h.astype(jnp.bfloat16))
        latents = {"h": h, "version": batch.latents["version"][1:]}
        metrics = {"train/opt/loss": Mean.of(value), "train/opt/skipped": Sum.of(skipped)}
        metrics["train/opt/grad_norm"] = Mean.of(faulty("metric", norm, state.version))
        metrics["train/rew"] = Mean.of(batch.reward[1:])
        return UpdateOutput(state=State(params, state.version + 1), metrics=metrics, latents=latents)

    def explain(state, batch, key):
        value, _, grads = gradients(state, batch, key)
        numbers = {"loss/reward": value} | {f"grad/{k}": x for k, x in grads.items()}
        return numbers | {f"param/{k}": x for k, x in state.params.items()}

    def validate(state, batch, key):
        return {"holdout/loss/rew": Mean.of(loss(state.params, batch, key)[0])}

    return Learner(
        init=init,
        initial_carry=lambda n: jnp.zeros((n, WIDTH)),
        act=act,
        update=update,
        validate=validate,
        explain=explain,
        policy_params=lambda state: state,
        latent_zeros=lambda: {"h": jnp.zeros(WIDTH, jnp.bfloat16), "version": jnp.int32(0)},
        context=1,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command left in its run directory."""

    path: pathlib.Path

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.path / name).read_text()
        return [json.loads(line) for line in text.splitlines()]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.lines("metrics.jsonl")

    @property
    def scores(self) -> list[dict[str, Any]]:
        return self.lines("scores.jsonl")

    @property
    def note(self) -> dict[str, Any]:
        return json.loads((self.path / "run.json").read_text())

    def steps(self, key: str = "step") -> list[int]:
        """Steps of the rows that have a key."""
        return [row["step"] for row in self.rows if key in row]

    def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
        """All arrays and counters of the newest of checkpoints/latest, or of that at `step`; no seconds."""
        home = self.path / "checkpoints" / "latest"
        return arrays_of(find(home if step is None else home / str(step)))


def arrays_of(found: Checkpoint) -> dict[str, np.ndarray]:
    """All arrays and counters of a checkpoint; no seconds."""
    shapes, _ = checkpoint.shapes(found.folder)
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    asked = {k: jax.ShapeDtypeStruct(tuple(x.shape), x.dtype, sharding=place) for k, x in shapes.items()}
    on_device, on_host = checkpoint.load(found.folder, asked)
    counters = {f"counters.{k}": x for k, x in found.manifest["counters"].items() if k != "wall_s"}
    return {k: np.asarray(x) for k, x in {**on_device, **on_host, **counters}.items()}


def run(logdir: pathlib.Path, *flags: str, code: int = 0) -> Run:
    """A command line in this process, which must end with an exit code."""
    assert train.main([*TINY, f"--logdir={logdir}", *flags]) == code
    return Run(logdir)


def timeless(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs between two runs of one seed."""
    return {k: v for k, v in row.items() if not k.startswith(glossary.TIME_KEYS)}


def assert_same_rows(a: Run, b: Run, *but: str) -> None:
    """All rows have the same bits, apart from time and the names in `but`."""
    rows = [[timeless(row) | dict.fromkeys(but) for row in x.rows] for x in (a, b)]
    assert rows[0] == rows[1]


def assert_same_arrays(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    differing = [k for k in a if a[k].dtype != b[k].dtype or a[k].tobytes() != b[k].tobytes()]
    assert not differing


ENTRY = "import sys; sys.path.append('tests'); import small; sys.exit(small.entry())"


def start(
    logdir: pathlib.Path, *flags: str, real: bool = False, code_of: str = ENTRY, **options: Any
) -> subprocess.Popen:
    """The same command in a process of its own; with `real`, through the program's own entry."""
    mine = ["-m", "jaxrl.train"] if real else ["-c", code_of]
    words = [sys.executable, *mine, *TINY, f"--logdir={logdir}", *flags]
    return subprocess.Popen(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def several(devices: int) -> dict[str, str]:
    """The environment of a process in which the CPU poses as so many devices."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags}


def entry() -> int:
    """jaxrl.train with the small learner, for `start`."""
    learners.LEARNERS["dreamer"] = make_learner
    return train.main(sys.argv[1:])
