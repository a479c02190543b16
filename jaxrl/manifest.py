"""The last file of a checkpoint: what it holds, and the digest of every other file.

A folder without a manifest is no checkpoint. The arrays' own format has no checksums: one flipped bit would
come back as a wrong number. So every byte is compared with its digest before anything is loaded.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Container
from typing import Any

FORMAT = 1  # raised when older programs can no longer read what newer ones write
NAME = "manifest.json"
GONE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)  # other errors say nothing of the file
LARGEST = 64 * 2**20  # bytes of a manifest; whatever is larger is none


class Damaged(Exception):
    """A folder that is not the checkpoint that was written: one line that names the file."""


class TooNew(Exception):
    """Written by a newer version of this program."""


def write(folder: pathlib.Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Digests every file of `folder`, adds the facts, and makes the folder a checkpoint.

    Everything is on the disk when this returns, as far as the system can be trusted. Raises OSError.
    """
    files = {}
    for path in sorted(x for x in folder.rglob("*") if x.is_file() and x.name != NAME):
        size, digest = digest_of(path, sync=True)
        files[path.relative_to(folder).as_posix()] = {"bytes": size, "sha256": digest}
    manifest = {"format": FORMAT, **facts, "files": files}
    manifest["sha256"] = own_digest(manifest)
    fresh = folder / (NAME + ".new")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(manifest, file, allow_nan=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, folder / NAME)
    for path in (folder, folder.parent):
        sync(path)
    return manifest


def read(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a checkpoint, itself intact; the other files are not looked at.

    Raises:
      Damaged: if it is missing or not what was written.
      TooNew: if it has a newer format.
      OSError: if the disk does not answer.
    """
    path = folder / NAME
    try:
        if path.stat().st_size > LARGEST:
            raise Damaged(f"{NAME} is larger than any that is written")
        manifest = json.loads(path.read_bytes())
        version, digest = manifest["format"], manifest["sha256"]
    except GONE as error:
        raise Damaged(f"{NAME}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Damaged(f"{NAME} cannot be read") from error
    if digest != own_digest(manifest):
        raise Damaged(f"{NAME} has changed since it was written")
    if version > FORMAT:
        raise TooNew(f"{path} has format {version}, this program reads up to {FORMAT}; update jaxrl")
    return manifest


def verify(folder: pathlib.Path, but: Container[str] = ()) -> dict[str, Any]:
    """The manifest, after comparing every file with it, but for those that nobody will read.

    Files that are not in the manifest are not looked at, either.

    Raises:
      Damaged, TooNew.
    """
    manifest = read(folder)
    home = folder.resolve()
    for name, told in manifest["files"].items():
        if not (home / name).resolve().is_relative_to(home):
            raise Damaged(f"{NAME} names a file outside of its folder")
        if name in but:
            continue
        try:
            size, digest = digest_of(folder / name)
        except GONE as error:
            raise Damaged(f"{name}: {error.strerror}") from error
        if size != told["bytes"]:
            raise Damaged(f"{name} has {size:,} bytes instead of {told['bytes']:,}")
        if digest != told["sha256"]:
            raise Damaged(f"{name} has changed since it was written")
    return manifest


def own_digest(manifest: dict[str, Any]) -> str:
    """Of everything in the manifest but its own digest."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def digest_of(path: pathlib.Path, sync: bool = False) -> tuple[int, str]:
    """(bytes, sha256) of a file; with `sync` it is on the disk, too."""
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def sync(path: pathlib.Path) -> None:
    """Brings a file to the disk; of a folder the names in it: new files and renames."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
