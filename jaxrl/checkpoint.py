"""Checkpoints through Orbax: one folder per step, written in the background, committed atomically.

A checkpoint is two flat dicts of arrays by dotted name: what lies on devices and what lies on the host.
"""

import contextlib
import dataclasses
import logging
import pathlib
import warnings
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxrl.exits import NoCheckpoint, WriteFailed

Shapes = dict[str, jax.ShapeDtypeStruct]


@dataclasses.dataclass
class Pending:
    step: int
    response: Any


class Store:
    """The checkpoints of one folder, by step (env_steps). The newest `keep` stay."""

    def __init__(self, folder: pathlib.Path, keep: int):
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax says all there that it raises, too
        self._folder, self._keep = folder.resolve(), keep
        self._pending: Pending | None = None
        self._checkpointer = self._opened()

    def _opened(self) -> ocp.training.Checkpointer:
        # Orbax's annotations do not admit its own classes.
        folder: Any = self._folder
        policy: Any = ocp.training.preservation_policies.LatestN(self._keep)
        return ocp.training.Checkpointer(folder, preservation_policy=policy, cleanup_tmp_directories=True)

    def _failed(self, step: int, error: BaseException) -> WriteFailed:
        """What to raise. Starts afresh: Orbax would raise it once more, and leave half a checkpoint."""
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        with contextlib.suppress(Exception):
            self._checkpointer = self._opened()
        return WriteFailed(f"checkpoint at step {step}: {reason(error)}")

    def latest(self) -> int | None:
        """Step of the newest committed checkpoint; None if there is none."""
        self.wait()
        steps = [found.step for found in self._checkpointer.checkpoints]
        return max(steps) if steps else None

    def save(self, step: int, on_device: dict[str, jax.Array], on_host: dict[str, np.ndarray]) -> bool:
        """Begins to write a checkpoint; the arrays may be donated as soon as this returns.

        Returns:
          False if there is one of this step already.

        Raises:
          WriteFailed: if the checkpoint begun before could not be written; this one was not begun.
        """
        if step == self.latest():
            return False
        try:
            response = self._checkpointer.save_checkpointables_async(
                step, {"device": on_device, "host": on_host}
            )
        except Exception as error:
            raise self._failed(step, error) from error
        self._pending = Pending(step, response)
        return True

    def wait(self) -> None:
        """Waits until the checkpoint that is being written is on disk. Raises WriteFailed if it failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.response.result()
        except Exception as error:
            raise self._failed(pending.step, error) from error

    def shapes(self, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Shapes and dtypes of a checkpoint's arrays by name: on devices, on the host."""
        try:
            stored = self._checkpointer.checkpointables_metadata(step).metadata
            on_device, on_host = stored["device"], stored["host"]
        except Exception as error:
            raise NoCheckpoint(f"checkpoint at step {step}: cannot be read: {reason(error)}") from error
        if on_device is None or on_host is None:
            raise NoCheckpoint(
                f"checkpoint at step {step}: cannot be read: files of {self._folder / str(step)} are missing"
            )
        return on_device, on_host

    def load(self, step: int, on_device: Shapes | None) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
        """Arrays by name; those on devices as `on_device` describes them (shape, dtype, sharding)."""
        asked = {"host": None} if on_device is None else {"device": on_device, "host": None}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # host arrays have no sharding, which Orbax remarks on
                loaded = self._checkpointer.load_checkpointables(step, asked)
        except Exception as error:
            raise NoCheckpoint(f"checkpoint at step {step}: cannot be read: {reason(error)}") from error
        return loaded.get("device", {}), loaded["host"]

    def close(self) -> None:
        """Waits, then lets go of the folder."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()


def reason(error: BaseException) -> str:
    """The innermost cause in one line; Orbax wraps its errors several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().split("\n")[0][:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by dotted name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
    """The pytree of the structure of `like` with other leaves, by dotted name."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in flatten(like)])
