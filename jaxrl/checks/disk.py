"""Folders: where runs go, and where compiled programs are kept."""

import dataclasses
import errno
import fcntl
import os
import pathlib
import shlex
import shutil
import statistics
import tempfile
import time
import zlib
from collections.abc import Iterator

from jaxrl import rundir, runtime
from jaxrl.checks.finding import FAULT, OK, WARN, Finding, Wish, first_line, halves, plural, size
from jaxrl.config import ConfigError

LOW, FULL = 5e9, 0.5e9  # free bytes: from where on it is told, and is a fault
FEW_FILES = 10_000  # that may still be made; a checkpoint has some dozen
SLOW_MS = 1_000.0  # of bringing 64 kB to the disk
OBJECTS = ("gcsfuse", "s3fs", "mountpoint-s3", "goofys", "rclone", "blobfuse")  # stores without renames
ZSTD, ZLIB = b"\x28\xb5\x2f\xfd", b"\x78"  # how an entry of jax's compile cache begins
BUDGET_S = 1.0  # for reading such entries
MOUNTS = pathlib.Path("/proc/self/mountinfo")


Problem = tuple[str, str, str]  # mark, what, remedy


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a folder can do, by trying."""

    lock: str  # why locks do not work; "" if they do
    rename: str
    sync_ms: float  # to write 64 kB and have it on the disk


def runs(wish: Wish) -> Iterator[Finding]:
    """The folder that runs are made in."""
    name, text = "runs folder", wish.logdir or (str(wish.run.parent) if wish.run else "runs")
    path = pathlib.Path(text)
    try:
        path = rundir.located("logdir", text)
        home = existing(path)
        if not home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{home} is a file, not a folder")
        tried = try_out(home)
    except ConfigError as error:
        yield Finding(FAULT, name, *halves(str(error), "choose another"))
        return
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror or first_line(error)})"
        yield Finding(FAULT, name, what, unwritable(error, path))
        return
    problems = [*path_problems(wish.logdir, path), *trial_problems(tried), *space_problems(home)]
    yield from (Finding(mark, name, f"{path}: {what}", remedy) for mark, what, remedy in problems)
    if not problems:
        fresh = "" if path.is_dir() else " (will be made)"
        kind = f" on {x}" if (x := file_system(home)) else ""
        works = f"locks and renames work, a write is on the disk after {tried.sync_ms:.0f} ms"
        yield Finding(OK, name, f"{path}{fresh}: {size(free_bytes(home))} free{kind}; {works}")


def unwritable(error: OSError, path: pathlib.Path) -> str:
    """What to do about a folder that cannot be written."""
    if error.errno == errno.ENOSPC:
        return f"{largest(existing(path))}; or --logdir=FOLDER on another disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"--logdir=~/runs, or: sudo chown -R $USER {shlex.quote(str(path))}"
    return "choose another folder, for example --logdir=~/runs"


def largest(folder: pathlib.Path) -> str:
    return f"remove what is large: du -xh {shlex.quote(str(folder))} | sort -h | tail"


def path_problems(given: str, path: pathlib.Path) -> Iterator[Problem]:
    """Of the path as it was written: "" is ./runs, which is told but no mistake."""
    if given and not pathlib.Path(given).expanduser().is_absolute():
        what = f"--logdir={given} is relative: the same command, given elsewhere, would not find its run"
        yield WARN, what, f"--logdir={shlex.quote(str(path))}"


def trial_problems(tried: Trial) -> Iterator[Problem]:
    """Of the file system, by what was tried in it."""
    elsewhere = "--logdir=FOLDER on a local disk; copy the run when it is done"
    if tried.lock:
        yield FAULT, f"locks do not work ({tried.lock}): two processes could write one run", elsewhere
    if tried.rename:
        yield FAULT, f"renames do not work ({tried.rename}): no checkpoint can be made", elsewhere
    if tried.sync_ms > SLOW_MS:
        yield WARN, f"slow: {tried.sync_ms:,.0f} ms until 64 kB are on the disk", elsewhere


def space_problems(folder: pathlib.Path) -> Iterator[Problem]:
    """Of the file system, by what it says of itself."""
    free, files, kind = free_bytes(folder), free_files(folder), file_system(folder)
    room = f"{largest(folder)}; or --logdir=FOLDER on another disk"
    if free < LOW:
        what = f"only {size(free)} free; an Atari-100k run keeps about 3 GB with its replay"
        yield FAULT if free < FULL else WARN, what, room
    if files is not None and files < FEW_FILES:
        yield WARN, f"room for only {files:,} more files (df -i)", room
    if any(name in kind for name in OBJECTS):
        what = f"{kind} is an object store: renames are copies, locks hold on one machine only"
        yield WARN, what, "--logdir=FOLDER on a disk; copy the run when it is done"


def try_out(folder: pathlib.Path) -> Trial:
    """Writes, locks and renames in a folder of its own inside. Raises OSError if it cannot be written."""
    with tempfile.TemporaryDirectory(prefix=".jaxrl-doctor-", dir=folder, ignore_cleanup_errors=True) as made:
        home = pathlib.Path(made)
        times = []
        for _ in range(3):
            began = time.monotonic()
            with open(home / "synced", "wb") as file:
                file.write(os.urandom(2**16))
                file.flush()
                os.fsync(file.fileno())
            times.append(1e3 * (time.monotonic() - began))
        return Trial(lock_trial(home / "lock"), rename_trial(home), statistics.median(times))


def lock_trial(file: pathlib.Path) -> str:
    """Why a second one can take a lock that is held, or the first one cannot; "" if all is well."""
    with open(file, "w") as first, open(file) as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.strerror or "flock fails"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
    return "two can hold the same"


def rename_trial(home: pathlib.Path) -> str:
    """Why a file cannot replace another, or a folder be renamed; "" if all is well."""
    try:
        for name, text in (("old", "1"), ("new", "2")):
            (home / name).write_text(text)
        os.replace(home / "new", home / "old")
        (home / "folder").mkdir()
        (home / "folder").rename(home / "renamed")
        return "" if (home / "old").read_text() == "2" else "the old file is still there"
    except OSError as error:
        return error.strerror or first_line(error)


def cache(wish: Wish) -> Iterator[Finding]:
    """Compiled programs, without which every start compiles anew."""
    del wish
    name, folder = "compile cache", pathlib.Path(runtime.cache_folder("auto"))
    home = existing(folder)
    try:
        if not home.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{home} is a file")
        with tempfile.TemporaryDirectory(prefix=".jaxrl-doctor-", dir=home):
            pass
    except OSError as error:
        what = f"{folder}: cannot be written ({error.strerror}), so every start compiles anew"
        remedy = "export JAX_COMPILATION_CACHE_DIR=~/xla, or --runtime.compile_cache=FOLDER"
        yield Finding(WARN, name, what, remedy)
        return
    entries = cache_entries(folder)
    total = sum(count for _, _, count in entries)
    what = f"{folder}: {plural(len(entries), 'program')}, {size(total)}" if entries else f"{folder}: empty"
    bad = damaged(entries)
    if bad:
        files = " ".join(shlex.quote(str(x)) for x in bad)
        remedy = f"rm {files}" if len(bad) <= 3 else f"rm -r {shlex.quote(str(folder))}"
        what += f", {len(bad)} of them damaged, which jax warns of at each start and never mends"
        yield Finding(WARN, name, what, remedy)
    elif free_bytes(home) < FULL:
        what += f"; only {size(free_bytes(home))} free"
        yield Finding(WARN, name, what, "export JAX_COMPILATION_CACHE_DIR=FOLDER on another disk")
    else:
        yield Finding(OK, name, what)


def cache_entries(folder: pathlib.Path) -> list[tuple[float, pathlib.Path, int]]:
    """(time, file, bytes), the newest first."""
    found = []
    if folder.is_dir():
        for entry in os.scandir(folder):
            if entry.name.endswith("-cache") and entry.is_file():
                facts = entry.stat()
                found.append((facts.st_mtime, pathlib.Path(entry.path), facts.st_size))
    return sorted(found, reverse=True)


def damaged(entries: list[tuple[float, pathlib.Path, int]]) -> list[pathlib.Path]:
    """Entries that jax cannot read. All are looked at, but only the newest, for a second, to their end."""
    bad, until = [], time.monotonic() + BUDGET_S
    for _, file, _ in entries:
        with open(file, "rb") as stream:
            head = stream.read(4)
            if head == ZSTD:
                continue
            if head[:1] != ZLIB or (time.monotonic() < until and not is_whole(head + stream.read())):
                bad.append(file)
    return bad


def is_whole(packed: bytes) -> bool:
    """Whether a zlib stream has its end and its checksum is right."""
    unpacking = zlib.decompressobj()
    try:
        while packed and not unpacking.eof:
            unpacking.decompress(packed, 2**20)
            packed = unpacking.unconsumed_tail
    except zlib.error:
        return False
    return unpacking.eof


# Measurements.


def existing(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest folder above it that is there."""
    return next(x for x in (path, *path.parents) if x.exists())


def free_bytes(folder: pathlib.Path) -> int:
    """That this user may still write."""
    return shutil.disk_usage(folder).free


def free_files(folder: pathlib.Path) -> int | None:
    """Files that may still be made; None where there is no limit."""
    facts = os.statvfs(folder)
    return facts.f_favail if facts.f_files else None


def file_system(folder: pathlib.Path) -> str:
    """ "ext4", "nfs4", "fuse.gcsfuse" ...; "" if the system does not tell."""
    best, kind = -1, ""
    for line in MOUNTS.read_text().splitlines() if MOUNTS.is_file() else []:
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        if folder.resolve().is_relative_to(point) and len(point) >= best:
            best, kind = len(point), right.split()[0]
    return kind
