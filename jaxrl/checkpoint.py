"""The only user of Orbax: writes arrays into a folder in the background, and reads them back.

A checkpoint's arrays are two flat dicts by dotted name: what lies on devices and what lies on the host.
Which folders there are, and which of them are checkpoints, is not decided here (stores.py).

Orbax reads an array as a whole into the host's memory before it goes to its device: a ring would be there
twice. So large arrays are stored in pieces of whole rows, and read piece by piece into their place. One that
was stored as a whole, as earlier versions did, is read as a whole.
"""

import functools
import itertools
import logging
import math
import pathlib
import shutil
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore
from orbax.checkpoint import v1 as ocp

from jaxrl.exits import NoCheckpoint

Shapes = dict[str, jax.ShapeDtypeStruct]
UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a folder that Orbax has not renamed yet
LARGE = 2**24  # bytes; a larger array is stored in pieces
PIECE, LEAST = 2**20, 2**16  # bytes of a piece, at most and at least


class Response(Protocol):
    """What was begun."""

    def result(self) -> None:
        """Waits until the folder has its name; raises whatever went wrong."""
        ...


def begin(folder: pathlib.Path, on_device: dict[str, Any], on_host: dict[str, np.ndarray]) -> Response:
    """Begins to write `folder`, which must not exist; the arrays may be donated as soon as this returns."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax says all there that it raises, too
    context = ocp.Context()
    context.array.saving.scoped_storage_options_creator = divided
    with context:
        return ocp.save_checkpointables_async(str(folder), {"device": on_device, "host": on_host})


def divided(key: Any, value: Any) -> ocp.options.ArrayOptions.Saving.StorageOptions | None:
    """How Orbax is to store an array in pieces; None: as a whole, where its pieces would be tiny.

    Orbax can only cut where a number of rows divides all of them.
    """
    del key
    options = ocp.options.ArrayOptions.Saving.StorageOptions
    if value.nbytes <= LARGE or value.ndim < 2:
        return None
    rows, row = value.shape[0], value.nbytes // value.shape[0]
    if row >= LEAST:
        return options(chunk_byte_size=PIECE, shard_axes=(0,))
    piece = row * max(n for n in range(1, PIECE // row + 1) if rows % n == 0)
    return options(chunk_byte_size=piece) if piece >= LEAST else None


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

    It must describe all of them, or with `part` only those that are wanted, and none of the host's is read.
    An array that is asked for with more rows than it has gets rows of zeros.
    """
    stored, asked = shapes(folder)[0], on_device or {}
    try:
        large = dict(in_pieces(folder, asked))
        whole = {k: sized(x, stored[k].shape) for k, x in asked.items() if k not in large}
        context = ocp.Context()
        context.pytree.loading.partial_load = part or bool(large)
        with context, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # host arrays have no sharding, which Orbax remarks on
            wanted = ({"device": whole} if whole else {}) | ({} if part and whole else {"host": None})
            loaded = ocp.load_checkpointables(str(folder), wanted)
        found = {k: grown(x, asked[k].shape) for k, x in loaded.get("device", {}).items()}
        found |= {k: assembled(x, asked[k]) for k, x in large.items()}
    except Exception as error:
        raise NoCheckpoint(f"{folder}: cannot be read: {reason(error)}") from error
    return {k: found[k] for k in asked}, loaded.get("host", {})


def unneeded(folder: pathlib.Path, names: tuple[str, ...]) -> set[str]:
    """Files of a checkpoint, relative to it, without a byte of those device arrays whose names begin so.

    The index of the store is asked, so nothing large is read. Raises whatever its reader raises.
    """
    home = tensorstore.KvStore.open(f"file://{folder / 'device'}/").result()
    return unneeded_in(home, tuple(name.encode() for name in names))


def unneeded_in(home: tensorstore.KvStore, starts: tuple[bytes, ...]) -> set[str]:
    """The same of an OCDBT store: files of values, but for those with an array's value or a node."""
    root = tensorstore.ocdbt.dump(home).result()["versions"][-1]["root"]
    nodes, needed, found = [(b"", root["location"])], set(), set()
    while nodes:
        prefix, place = nodes.pop()  # keys in a node lack what all of them begin with
        needed.add(file_of(place))
        for entry in tensorstore.ocdbt.dump(home, place).result()["entries"]:
            if "location" in entry:
                nodes.append((prefix + entry["subtree_common_prefix"], entry["location"]))
            elif "indirect_value" in entry:  # others lie in the node
                key = prefix + entry["key"]
                wanted = key.startswith(starts) or key.endswith(b".json")
                (needed if wanted else found).add(file_of(entry["indirect_value"]))
    return found - needed


def file_of(place: str) -> str:
    """The file of "kind:base:path:offset:length", a place in the store of arrays on devices."""
    _, base, path, _, _ = place.split(":")
    return f"device/{base}{path}"


def sized(like: Any, shape: tuple[int, ...]) -> Any:
    return like if like.shape == tuple(shape) else like.update(shape=tuple(shape))


def in_pieces(folder: pathlib.Path, asked: Shapes) -> Iterator[tuple[str, tensorstore.TensorStore]]:
    """The large arrays among those that are asked for which are stored in pieces."""
    for name, like in asked.items():
        if math.prod(like.shape) * like.dtype.itemsize > LARGE and len(like.sharding.device_set) == 1:
            home = {"driver": "ocdbt", "base": f"file://{folder / 'device'}/", "path": f"{name}/"}
            array = tensorstore.open({"driver": "zarr3", "kvstore": home}, read=True).result()
            if piece_of(array) != array.shape:
                yield name, array


def piece_of(array: tensorstore.TensorStore) -> tuple[int, ...]:
    """Shape of the stored pieces of an array."""
    return tuple(n or 1 for n in array.chunk_layout.read_chunk.shape or array.shape)


def assembled(array: tensorstore.TensorStore, like: jax.ShapeDtypeStruct) -> jax.Array:
    """A stored array, read piece by piece; rows of zeros up to the shape of `like` follow."""
    whole = jnp.zeros(like.shape, like.dtype, device=like.sharding)
    sizes = piece_of(array)
    for corner in itertools.product(*(range(0, n, size) for n, size in zip(array.shape, sizes, strict=True))):
        # A last piece begins earlier: all are of one size, for one program.
        first = [min(at, n - size) for at, n, size in zip(corner, array.shape, sizes, strict=True)]
        where = tuple(slice(at, at + size) for at, size in zip(first, sizes, strict=True))
        piece = jax.device_put(array[where].read().result(), like.sharding)
        whole = placed(whole, piece, jax.device_put(np.array(first, np.int32), like.sharding))
        jax.block_until_ready(whole)  # else pieces would pile up
    return whole


@functools.partial(jax.jit, donate_argnums=0)
def placed(whole: jax.Array, piece: jax.Array, first: jax.Array) -> jax.Array:
    """The array with other numbers from the corner `first` on, [ndim] i32."""
    return jax.lax.dynamic_update_slice(whole, piece, tuple(first))


def grown(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The array with zeros behind its first axis, up to a shape."""
    if array.shape == shape:
        return array
    more = jnp.zeros((shape[0] - array.shape[0], *shape[1:]), array.dtype, device=array.sharding)
    return jax.device_put(jnp.concatenate([array, more]), array.sharding)


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
