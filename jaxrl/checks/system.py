"""The machine under the program: cores, memory, shared memory, open files, and variables that change XLA."""

import os
import pathlib
import resource
import shutil
from collections.abc import Iterator

from jaxrl import runtime
from jaxrl.checks.finding import OK, WARN, Finding, Wish, size

ROOT = pathlib.Path("/")
MIB = 2**20
SHM, FILES, FREE = 64 * MIB, 1_024, 2e9  # least bytes of /dev/shm, open files, free bytes of memory
# Variables that change what jax does, told where they are set.
TOLD = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "MUJOCO_GL")
FRACTIONS = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
ALLOCATORS = ("default", "platform", "bfc", "cuda_async", "vmm")
SWITCHES = {
    "JAX_DISABLE_JIT": "nothing is compiled: a thousand times slower",
    "JAX_ENABLE_X64": "numbers have 64 bits: slower, and other results",
    "JAX_DEBUG_NANS": "every result is fetched and looked at: slow",
}


def cores(wish: Wish) -> Iterator[Finding]:
    """How many the process may use, against how many there are."""
    del wish
    there, usable, quota = os.cpu_count() or 1, usable_cores(), core_quota()
    if quota and quota < usable:
        found = f"this container may use {quota:.3g}, but programs see {usable} and start as many threads"
        last = max(1, int(quota)) - 1
        remedy = f"taskset -c {f'0-{last}' if last else '0'} python -m jaxrl.train ..."
        yield Finding(WARN, "cores", found, remedy)
    else:
        yield Finding(OK, "cores", f"{usable} of {there} may be used" if usable < there else str(there))


def memory(wish: Wish) -> Iterator[Finding]:
    """Of the host, and what the container allows."""
    del wish
    there, free, limit = total_memory(), free_memory(), memory_limit()
    found = f"{size(there)}" + (f", {size(free)} of it free" if free is not None else "")
    if limit and limit < there:
        found += f"; this container is ended at {size(limit)}, but replay on a CPU is sized by the whole"
        yield Finding(WARN, "memory", found, f"train with --replay.budget_gb={limit / 2e9:.2g}")
    elif free is not None and free < FREE:
        remedy = "end what takes most (top -o %MEM), or train with --replay.budget_gb=0.5"
        yield Finding(WARN, "memory", found, remedy)
    else:
        yield Finding(OK, "memory", found)


def shared_memory(wish: Wish) -> Iterator[Finding]:
    """/dev/shm, through which GPUs of one machine exchange gradients."""
    del wish
    folder = ROOT / "dev/shm"
    if not folder.is_dir():
        return
    there = total_bytes(folder)
    if there < SHM:
        remedy = "docker run --shm-size=1g ..., or mount -o remount,size=1g /dev/shm"
        found = f"{size(there)}: too little for what GPUs of one machine exchange through it"
        yield Finding(WARN, "/dev/shm", found, remedy)
    else:
        yield Finding(OK, "/dev/shm", size(there))


def open_files(wish: Wish) -> Iterator[Finding]:
    """The limit of this process."""
    del wish
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (2**31 if x == resource.RLIM_INFINITY else x for x in (soft, hard))
    if soft < FILES:
        remedy = f"ulimit -n {min(hard, 4_096)}"
        yield Finding(WARN, "open files", f"at most {soft:,}, of which a run may need some hundred", remedy)
    else:
        yield Finding(OK, "open files", "no limit" if soft >= 2**31 else f"at most {soft:,}")


def variables(wish: Wish) -> Iterator[Finding]:
    """The environment, as far as jax, XLA and MuJoCo read it."""
    del wish
    problems = [*flag_problems(), *memory_problems()]
    for name, effect in SWITCHES.items():
        if (runtime.variable(name) or "0").lower() not in ("0", "false", ""):
            problems.append((f"{name}={runtime.variable(name)}: {effect}", f"unset {name}"))
    yield from (Finding(WARN, "variables", found, remedy) for found, remedy in problems)
    if not problems:
        told = [f"{x}={value}" for x in (*TOLD, *FRACTIONS) if (value := runtime.variable(x))]
        yield Finding(OK, "variables", ", ".join(told) or "none is set that changes how jax computes")


def flag_problems() -> Iterator[tuple[str, str]]:
    """(what, remedy) of XLA_FLAGS. A flag that XLA does not know ends the process: the device tells of it."""
    words = (runtime.variable("XLA_FLAGS") or "").split()
    good = [x for x in words if x.startswith("--") and not x.startswith(runtime.SEVERAL)]
    remedy = f"export XLA_FLAGS='{' '.join(good)}'" if good else "unset XLA_FLAGS"
    for word in words:
        if not word.startswith("--"):
            yield f"XLA_FLAGS has {word}, which is no flag: they begin with --", remedy
        elif word.startswith(runtime.SEVERAL):
            yield f"XLA_FLAGS has {word}: the CPU poses as several devices, as in tests", remedy


def memory_problems() -> Iterator[tuple[str, str]]:
    """(what, remedy) of how jax takes memory of a GPU."""
    given = [name for name in FRACTIONS if runtime.variable(name)]
    if len(given) > 1:
        yield f"{' and '.join(given)} are both set, which jax refuses", f"unset {FRACTIONS[0]}"
    for name in given:
        text = runtime.variable(name) or ""
        try:
            good = 0 < float(text) <= 1
        except ValueError:
            good = False
        if not good:
            yield f"{name}={text}: must be above 0 and at most 1", f"export {name}=0.75"
    allocator = (runtime.variable("XLA_PYTHON_CLIENT_ALLOCATOR") or "default").lower()
    if allocator not in ALLOCATORS:
        yield f"XLA_PYTHON_CLIENT_ALLOCATOR={allocator}: unknown to jax", "unset XLA_PYTHON_CLIENT_ALLOCATOR"
    if allocator == "platform":
        what = "XLA_PYTHON_CLIENT_ALLOCATOR=platform asks the driver for every array: slow"
        yield what, "unset XLA_PYTHON_CLIENT_ALLOCATOR"


# Measurements, each a function so that a test can stand in for the machine.


def total_bytes(folder: pathlib.Path) -> int:
    return shutil.disk_usage(folder).total


def usable_cores() -> int:
    """That the scheduler lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_memory() -> int | None:
    """Bytes that programs may still take; None if the system does not tell."""
    file = ROOT / "proc/meminfo"
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:")), None)


def core_quota() -> float | None:
    """Cores that this process's control groups grant it; None: no limit."""
    found = []
    for text in group_values("cpu.max", "cpu", "cpu.cfs_quota_us"):
        quota, *period = text.split()
        if quota.isdigit():
            whole = period or group_values("", "cpu", "cpu.cfs_period_us")[:1] or ["100000"]
            found.append(int(quota) / int(whole[0]))
    return min(found, default=None)


def memory_limit() -> int | None:
    """Bytes at which this process's control groups end it; None: no limit."""
    found = group_values("memory.max", "memory", "memory.limit_in_bytes")
    return min((int(x) for x in found if x.isdigit() and int(x) < 2**60), default=None)


def group_values(file: str, controller: str, old: str) -> list[str]:
    """What a file says in the control group of this process and in all groups around it.

    Args:
      file: its name in version 2 of control groups.
      controller: of version 1.
      old: its name there.
    """
    base, listed = ROOT / "sys/fs/cgroup", ROOT / "proc/self/cgroup"
    found = []
    for line in listed.read_text().splitlines() if listed.is_file() else []:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        # A container may see its own group as the root, whatever its path is outside.
        home, name = (base / controller, old) if names else (base, file)
        parts = pathlib.PurePosixPath(path.strip("/")).parts
        for depth in range(len(parts), -1, -1):
            place = home.joinpath(*parts[:depth], name)
            if name and place.is_file():
                found.append(place.read_text().strip())
    return found
