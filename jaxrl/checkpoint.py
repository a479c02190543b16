"""The only user of Orbax: writes arrays into a folder in the background, and reads them back.

A checkpoint's arrays are two flat dicts by dotted name: what lies on devices and what lies on the host.
Which folders there are, and which of them are checkpoints, is not decided here (stores.py).
"""

import logging
import pathlib
import shutil
import warnings
from typing import Any, Protocol

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from jaxrl.exits import NoCheckpoint

Shapes = dict[str, jax.ShapeDtypeStruct]
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not renamed yet


class Response(Protocol):
    """What was begun."""

    def result(self) -> None:
        """Waits until the folder has its name; raises whatever went wrong."""
        ...


def begin(folder: pathlib.Path, on_device: dict[str, Any], on_host: dict[str, np.ndarray]) -> Response:
    """Begins to write `folder`, which must not exist; the arrays may be donated as soon as this returns."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax says all there that it raises, too
    return ocp.save_checkpointables_async(str(folder), {"device": on_device, "host": on_host})


def discard(folder: pathlib.Path) -> None:
    """Removes what a save that failed has left of `folder`."""
    for path in (folder, *folder.parent.glob(f"{folder.name}{UNFINISHED}*")):
        shutil.rmtree(path, ignore_errors=True)


def shapes(folder: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of the arrays of a checkpoint by name: on devices, on the host."""
    try:
        stored = ocp.checkpointables_metadata(str(folder)).metadata
        on_device, on_host = stored["device"], stored["host"]
    except Exception as error:
        raise NoCheckpoint(f"{folder}: cannot be read: {reason(error)}") from error
    if on_device is None or on_host is None:
        raise NoCheckpoint(f"{folder}: cannot be read: files are missing")
    return on_device, on_host


def load(
    folder: pathlib.Path, on_device: Shapes | None, part: bool = False
) -> tuple[dict[str, jax.Array], dict[str, np.ndarray]]:
    """Arrays by name; those on devices as `on_device` describes them (shape, dtype, sharding), None: none.

    It must describe all of them, or with `part` only those that are wanted.
    """
    asked = {"host": None} if on_device is None else {"device": on_device, "host": None}
    context = ocp.Context()
    context.pytree.loading.partial_load = part
    try:
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # host arrays have no sharding, which Orbax remarks on
            loaded = ocp.load_checkpointables(str(folder), asked)
    except Exception as error:
        raise NoCheckpoint(f"{folder}: cannot be read: {reason(error)}") from error
    return loaded.get("device", {}), loaded["host"]


def reason(error: BaseException) -> str:
    """The innermost cause in one line; Orbax wraps its errors several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip().split("\n")[0]
    if len(text) > 300:  # what happened stands at the end, behind a path
        text = f"{text[:100]} ... {text[-190:]}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by dotted name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def unflatten(like: Any, leaves: dict[str, Any]) -> Any:
    """The pytree of the structure of `like` with other leaves, by dotted name."""
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in flatten(like)])
