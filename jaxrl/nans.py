"""What is kept of numbers that are not finite: nan_report.json and nan_batch.npz in the run directory."""

import contextlib
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.checkpoint import flatten, reason
from jaxrl.config import Config
from jaxrl.envs.base import BadRow
from jaxrl.exits import Diverged
from jaxrl.parts import Parts
from jaxrl.programs import Programs
from jaxrl.rundir import now, write_json
from jaxrl.state import Counters, RunState

REPORT, ARRAYS = "nan_report.json", "nan_batch.npz"
ORDER = ("batch.", "loss/", "grad/", "param/")  # of cause and effect; what a name begins with


class Reports:
    """Looks into the first skipped update of a process, and into rows that environments must not give.

    Costs nothing while all is well. A report that cannot be written is told once and changes nothing.
    """

    def __init__(self, folder: pathlib.Path, parts: Parts, programs: Programs, note: Callable[[str], None]):
        self._writes = parts.machine.hosts.leads  # the others see the same updates, but rows of their own
        self._folder, self._parts, self._programs, self._note = folder, parts, programs, note
        self._record: dict[str, Any] = {}  # nan_report.json, once there is a reason for one
        self._arrays: dict[str, np.ndarray] | None = None  # of nan_batch.npz, until it is written
        self._failed = False

    def skipped(self, state: RunState, skipped: int, made: int, in_a_row: int) -> str:
        """Writes down what the first skipped update was made of, at a flush that shows some.

        Args:
          skipped: of the `made` updates since the last flush.

        Returns:
          Words that say where to look, "" if there is nothing to see: the skipped ones were another process'.
        """
        if not self._record and state.evidence is not None:
            number = int(jax.device_get(state.evidence.number))
            if number >= 0:
                kept = self._programs.whole(state.evidence.batch)
                batch = {k: plain(x) for k, x in flatten(kept).items()}
                self._record, self._arrays = self._examined(state, number, batch), batch
        if not self._record:
            return ""
        limit, at = self._parts.config.opt.max_skipped, state.counters.env_steps
        counts = {"step": at, "updates": skipped, "of": made, "in_a_row": in_a_row, "limit": limit}
        self._record["skipped"] = counts
        return f"; {REPORT} says where" if self._written() else ""

    @contextlib.contextmanager
    def border(self, counters: Counters, whose: str = "") -> Iterator[None]:
        """Around what may raise BadRow.

        Args:
          whose: such as "evaluation " where the environments are not those of the training.

        Raises:
          Diverged: instead, once the row is kept.
        """
        try:
            yield
        except BadRow as error:
            self._writes = True
            self._arrays = row = {k: plain(x) for k, x in error.row.items()}
            self._record = self._opening(counters) | {
                "what": f"{whose}environment {error.env} gave a number that is not finite",
                "first_bad": f"env.{error.key}",
                "bad": [f"env.{k}" for k, x in row.items() if not is_finite(x)],
                "batch": {k: summary(x) for k, x in row.items()},
                "batch_file": ARRAYS,
                "try": advice(f"env.{error.key}", self._parts.config),
            }
            where = f"; {ARRAYS} holds the row" if self._written() else ""
            raise Diverged(
                f"diverged at step {counters.env_steps:,}: {error.key} of {whose}environment {error.env} is "
                f"{error.value}, must be finite{where}; mend the environment"
            ) from error

    def refused(self, what: str, step: int, bad: list[str]) -> str:
        """Writes down which arrays have kept a state from being saved, beside what is known already.

        Args:
          what: such as "checkpoint latest/80".
          step: env_steps.

        Returns:
          Words that say where to look, "" if it could not be written.
        """
        told = {"what": f"{what} was refused", "step": step, "bad": bad}
        if self._record:
            self._record["checkpoint"] = told
        else:
            first = min(bad, key=rank)
            self._record = (
                {"time": now()} | told | {"first_bad": first, "try": advice(first, self._parts.config)}
            )
        return f"; {REPORT} names all that are not" if self._written() else ""

    def _opening(self, counters: Counters) -> dict[str, Any]:
        steps, repeat = counters.env_steps, self._parts.config.env.action_repeat
        return {
            "time": now(),
            "step": steps,
            "agent_steps": steps // repeat,
            "updates": counters.updates,
        }

    def _examined(self, state: RunState, number: int, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The report on update `number` (counted from 0), of which `batch` was kept."""
        explained, how = self._explained(state)
        found = {f"batch.{k}": is_finite(x) for k, x in batch.items()} | explained
        bad = [k for k in sorted(found, key=rank) if not found[k]]
        first = bad[0] if bad else None
        return self._opening(state.counters) | {
            "what": f"update {number} (counted from 0) was not finite and was skipped",
            "update": number,
            "first_bad": first,
            "bad": bad,
            "how": f"batch: as it was drawn; {how}",
            "batch": {k: summary(x) for k, x in batch.items()},
            "batch_file": ARRAYS,
            "try": advice(first, self._parts.config),
        }

    def _explained(self, state: RunState) -> tuple[dict[str, bool], str]:
        """Which numbers of the kept update are finite, and how that is known."""
        if self._parts.learner.explain is None or state.evidence is None:
            return {}, "this learner does not tell its losses and gradients"
        try:
            found = jax.device_get(self._programs.explain(state.learner, state.evidence))
        except Exception as error:  # a lack of memory, say: no reason to end a run that goes on
            return {}, f"losses and gradients could not be computed again: {reason(error)}"
        found = {k: bool(x) for k, x in found.items()}
        how = f"all else: computed again with the parameters after {state.counters.updates} updates"
        return found, how if not all(found.values()) else f"{how}, and finite there: not reproduced"

    def _written(self) -> bool:
        """Whether report and arrays are on disk; what could not be written is tried again the next time."""
        if not self._writes:
            return True
        try:
            if self._arrays is not None:
                write_arrays(self._folder / ARRAYS, self._arrays)
            self._arrays = None
            write_json(self._folder / REPORT, self._record)
        except OSError as error:
            if not self._failed:
                self._note(f"{REPORT} could not be written: {error.strerror or error}")
            self._failed = True
            return False
        return True


def rank(name: str) -> int:
    """Where a name stands in the chain of cause and effect."""
    return next((i for i, start in enumerate(ORDER) if name.startswith(start)), len(ORDER))


def plain(x: Any) -> np.ndarray:
    """An array of a dtype of numpy's own: bfloat16 as float32, of the same values."""
    x = np.asarray(x)
    return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.kind != "f" else x


def is_finite(x: np.ndarray) -> bool:
    return x.dtype.kind != "f" or bool(np.isfinite(x).all())


def summary(x: np.ndarray) -> dict[str, Any]:
    """Shape, dtype, and what its finite elements are like."""
    good = x[np.isfinite(x)] if x.dtype.kind == "f" else x
    text = {"dtype": str(x.dtype), "shape": list(x.shape), "not_finite": x.size - good.size}
    if not good.size:
        return text | {"min": None, "max": None, "mean": None}
    return text | {"min": float(good.min()), "max": float(good.max()), "mean": float(good.mean(dtype=float))}


def advice(first: str | None, config: Config) -> list[str]:
    """What to try, the likeliest first."""
    if first is not None and first.startswith("env."):
        return [f"see the row in {ARRAYS}: task {config.task} gave it", "mend the environment"]
    lower = f"start again in another --logdir with a lower --opt.lr than {config.opt.lr:g}"
    older = "go on in another --logdir from a checkpoint before it, with --resume_from, and a lower --opt.lr"
    found = [lower, older]
    if config.model.compute_dtype != "float32":
        found.append(f"--model.compute_dtype=float32 instead of {config.model.compute_dtype}")
    if first is None:
        return ["--runtime.debug_nans names the operation, slowly", *found]
    if first.startswith("batch."):
        return [f"see the rows in {ARRAYS}: replay holds what was collected", *found]
    return [*found, "--opt.clip limits the gradient of all tensors together"]


def write_arrays(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    """Replaces an npz file as a whole. Raises OSError."""
    fresh = path.with_name(path.name + ".new")
    try:
        with open(fresh, "wb") as file:
            np.savez(file, **arrays)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
