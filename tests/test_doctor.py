"""python -m jaxrl.doctor: every fault that is planted is found, named, and told with what to do about it."""

import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import threading
import time
import zlib

import pytest

from jaxrl import checks, doctor, manifest, reading, rundir
from jaxrl.checks import (
    FAULT,
    OK,
    WARN,
    Finding,
    Wish,
    child,
    device,
    disk,
    extras,
    inside,
    past,
    software,
    system,
    worlds,
)
from jaxrl.checks.child import Answer
from jaxrl.config import Config, replace, to_dict
from jaxrl.envs import games

ROOT = pathlib.Path(__file__).parents[1]
KEY = "wandb0v1" * 5  # 40 characters, as a real one
VARIABLES = ("JAX_PLATFORMS", "XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "MUJOCO_GL", "LD_LIBRARY_PATH")
VARIABLES += ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", *system.FRACTIONS)


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """No variable that means anything to a check, and no login of whoever runs the tests."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.fixture
def run(tmp_path):
    """A run directory that has ended well, with two checkpoints."""
    path = tmp_path / "runs" / "run"
    config = to_dict(replace(Config(), {"task": "toy_clock", "steps": 80}))
    counters = {"updates": 3, "episodes": 2, "wall_s": 1.0}
    for step in (40, 80):
        folder = path / "checkpoints" / "latest" / str(step)
        folder.mkdir(parents=True)
        (folder / "array").write_bytes(b"0" * 1000)
        facts = {"store": "latest", "step": step, "score": None, "counters": counters, "config": config}
        manifest.write(folder, facts)
    lines = [{"event": "saved", "store": "latest", "name": str(x), "step": x} for x in (40, 80)]
    rows = [{"step": x, "updates": 1} for x in (0, 40, 80)]
    for name, content in (("checkpoint_log", lines), ("metrics", rows), ("scores", rows[1:])):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in content))
    rundir.write_json(path / "config.json", config)
    note = {"id": "abc", "config": "debug", "exit": "done", "ended": "2026-01-01T00:00:00+0000"}
    rundir.write_json(path / "run.json", note)
    (path / "run.lock").write_text("pid 1 on elsewhere since 2026-01-01T00:00:00+0000")
    return path


def look(check, **wish) -> list[Finding]:
    """What a check finds. Whatever is not as it should be has a remedy."""
    found = list(check(Wish(**wish)))
    assert all(x.remedy for x in found if x.mark != OK), found
    assert all("\n" not in x.found + x.remedy for x in found)
    return found


def only(check, **wish) -> Finding:
    (found,) = look(check, **wish)
    return found


def assert_says(finding: Finding, mark: str, found: str, remedy: str = "") -> None:
    assert (finding.mark, found in finding.found, remedy in finding.remedy) == (mark, True, True), finding


def fake_child(monkeypatch, module, answers):
    """Puts answers in the place of children: a function of the words and variables, or always the same."""
    give = answers if callable(answers) else lambda *_, **__: answers
    monkeypatch.setattr(module, "ask", give)


def machine(root: pathlib.Path, **files: str) -> pathlib.Path:
    """A folder that stands for "/"; names have __ for a slash."""
    for name, text in files.items():
        file = root / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


# The ten faults.


def test_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    lost = Answer({"find": {"error": "device=gpu: only cpu is available; use --device=cpu, or see what"}}, "")
    fake_child(monkeypatch, device, lost)
    for fast in (False, True):
        assert_says(
            only(device.device, device="gpu", fast=fast), FAULT, "shows no NVIDIA card", "--device=cpu"
        )
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert_says(
        only(device.device, device="gpu", fast=True), FAULT, "JAX_PLATFORMS=cpu", "unset JAX_PLATFORMS"
    )


CARD = {"dev__nvidia0": ""}
DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.65.06  Release Build\nGCC version: 12"


@pytest.mark.parametrize(
    ("files", "plugins", "visible", "says", "remedy"),
    [
        (CARD, {}, None, "has no driver", "nvidia-smi"),
        (
            CARD | {"proc__driver__nvidia__version": DRIVER.format(580)},
            {},
            None,
            "no CUDA plugin",
            "jax[cuda13]",
        ),
        (
            CARD | {"proc__driver__nvidia__version": DRIVER.format(550)},
            {},
            None,
            "no CUDA plugin",
            "jax[cuda12]",
        ),
        (
            CARD | {"proc__driver__nvidia__version": DRIVER.format(550)},
            {"jax-cuda13-plugin": "0.10.2"},
            None,
            "CUDA 13 needs driver 580, this one is 550",
            "jax[cuda12]",
        ),
        (
            CARD | {"proc__driver__nvidia__version": DRIVER.format(580)},
            {"jax-cuda13-plugin": "0.10.2"},
            "-1",
            "CUDA_VISIBLE_DEVICES='-1' hides every card",
            "unset CUDA_VISIBLE_DEVICES",
        ),
        ({"sys__bus__pci__devices__1__vendor": "0x10de\n", "sys__bus__pci__devices__1__class": "0x030200\n"},)
        + ({}, None, "has no driver", "nvidia-smi"),
    ],
)
def test_a_card_that_jax_does_not_use(monkeypatch, tmp_path, files, plugins, visible, says, remedy):
    """With --device=gpu it is a fault; by itself a warning."""
    monkeypatch.setattr(device, "ROOT", machine(tmp_path, **files))
    monkeypatch.setattr(software, "plugins", lambda: plugins)
    monkeypatch.setattr(device.shutil, "which", lambda _: None)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert_says(only(device.device, device="gpu", fast=True), FAULT, says, remedy)
    found = {"platform": "cpu", "kind": "cpu", "count": 1, "memory": 8e9}
    good = {"find": found, "multiply": {"wrong": [], "seconds": 1.0}}
    simulate = {"reward": 1.0, "drawn": True, "seconds": 1.0, "version": "3"}
    fake_child(monkeypatch, device, Answer(good | {"simulate": simulate}, ""))
    assert_says(look(device.device)[0], WARN, says, remedy)
    assert_says(look(device.device, device="cpu")[0], OK, "computes rightly")


@pytest.mark.parametrize("fast", [False, True])
def test_bad_mujoco_gl(monkeypatch, fast):
    monkeypatch.setenv("MUJOCO_GL", "elg")
    assert_says(only(worlds.opengl, fast=fast), FAULT, "MUJOCO_GL=elg", "export MUJOCO_GL=egl")


@pytest.mark.parametrize(
    ("stages", "works", "mark", "remedy"),
    [
        (
            {"load": {"error": "no glGetError"}, "draw": {"error": "no glGetError"}},
            "egl",
            FAULT,
            "MUJOCO_GL=egl",
        ),
        ({"load": {}, "draw": {"error": "no driver"}}, "glfw", WARN, "export MUJOCO_GL=glfw"),
        ({"load": {}, "draw": {"library": ""}}, "", WARN, "apt-get install"),
    ],
)
def test_opengl_that_does_not_draw(monkeypatch, stages, works, mark, remedy):
    def answer(*words, **variables):
        asked = variables.get("MUJOCO_GL")
        return Answer({"load": {}, "draw": {"library": asked}} if asked and asked == works else stages, "")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    fake_child(monkeypatch, worlds, answer)
    assert_says(only(worlds.opengl), mark, "MUJOCO_GL=osmesa", remedy)


def test_read_only_folder(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    assert_says(only(disk.runs, logdir=f"{file}/runs"), FAULT, f"{file} is a file", "--logdir=")
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:  # whom no mode keeps from writing

        def refuse(*_, **__):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(disk.tempfile, "TemporaryDirectory", refuse)
    assert_says(only(disk.runs, logdir=str(folder / "runs")), FAULT, "Permission denied", "chown")


@pytest.mark.parametrize(("free", "mark"), [(3e9, WARN), (1e8, FAULT)])
def test_low_disk(monkeypatch, tmp_path, free, mark):
    monkeypatch.setattr(disk, "free_bytes", lambda _: free)
    assert_says(
        only(disk.runs, logdir=str(tmp_path)), mark, f"only {free / 1e6:,.0f}"[:6], "remove what is large"
    )


def test_missing_rom(monkeypatch):
    there = tuple(x.removeprefix("atari_") for x in games.ATARI100K if x != "atari_pong")
    monkeypatch.setattr(games, "installed_games", lambda: there)
    facts = dict(inside.envpool(""))["games"]()
    assert_says(worlds.roms(Answer({"games": facts}, "")), FAULT, "missing: pong.bin", "envpool-assets")


@pytest.mark.parametrize(
    ("key", "file", "says"),
    [
        (None, "", "not logged in to api.wandb.ai"),
        (None, "machine other login me password {}", "not logged in to api.wandb.ai"),
        (KEY[:30], "", "has 30 characters"),
        (" " + KEY, "", "is no key"),
        ("", "", "is empty"),
        (None, "{} machine api.wandb.ai login user password {}", "cannot be read"),
    ],
)
def test_wandb_key(monkeypatch, tmp_path, key, file, says):
    monkeypatch.setattr(software, "installed", lambda *_: "0.31.0")
    (tmp_path / "netrc").write_text(file.format(KEY, KEY))
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    found = only(extras.wandb)
    assert_says(found, WARN, says, "wandb login")
    assert KEY[:30] not in str(found)


def test_wandb_that_is_fine_or_not_wanted(monkeypatch, tmp_path):
    monkeypatch.setattr(software, "installed", lambda *_: "")
    assert_says(only(extras.wandb), OK, "pip install 'jaxrl[wandb]'")
    monkeypatch.setattr(software, "installed", lambda *_: "0.31.0")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert_says(only(extras.wandb), OK, "WANDB_MODE=offline")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", f"https://me:{KEY}@own.server/path")
    (tmp_path / "netrc").write_text(f"machine own.server login user password {KEY}\n")
    found = only(extras.wandb)
    assert_says(found, OK, "own.server")
    assert KEY not in str(found)


@pytest.mark.parametrize(
    ("package", "version", "mark", "says", "remedy"),
    [
        ("flax", "0.9.0", FAULT, "flax 0.9.0 (jaxrl needs >=0.12)", "pip install 'flax>=0.12'"),
        ("orbax-checkpoint", "0.13.1", FAULT, "orbax-checkpoint 0.13.1", "orbax-checkpoint<0.13,>=0.12.8"),
        ("envpool", "", FAULT, "envpool is missing", "envpool>="),
        ("jaxlib", "0.9.0", FAULT, "jaxlib 0.9.0 (jax needs", "'jaxlib<="),
        ("scipy", "1.0", WARN, "scipy 1.0 (jax needs", "'scipy>="),
        ("av", "9.0", WARN, "av 9.0 (jaxrl needs >=14)", "'av>=14'"),
        ("av", "", OK, "fit together", ""),
    ],
)
def test_version_clash(monkeypatch, package, version, mark, says, remedy):
    real = software.installed
    monkeypatch.setattr(software, "installed", lambda *x: version if x == (package,) else real(*x))
    assert_says(only(software.packages), mark, says, remedy)


@pytest.mark.parametrize(
    ("plugins", "mark", "says", "remedy"),
    [
        (
            {"jax-cuda13-plugin": "0.9.0"},
            FAULT,
            "jax-cuda13-plugin 0.9.0: jax",
            "pip install -U 'jax[cuda13]==",
        ),
        ({"jax-cuda11-plugin": "0.4.0"}, FAULT, "has no use for it", "pip uninstall -y jax-cuda11-plugin"),
        ({"jax-cuda12-plugin": "", "jax-cuda13-plugin": ""}, WARN, "cuda12 and cuda13", "jax-cuda12-plugin"),
        ({"jax-cuda13-plugin": "", "jax-cuda13-pjrt": ""}, OK, "jax-cuda13-pjrt", ""),
        ({}, OK, "jax[cuda13]", ""),
    ],
)
def test_plugins_of_another_jax(monkeypatch, plugins, mark, says, remedy):
    jax = software.installed("jax")
    monkeypatch.setattr(software, "plugins", lambda: {name: x or jax for name, x in plugins.items()})
    assert_says(only(software.accelerators), mark, says, remedy)


def test_another_cuda_on_the_library_path(monkeypatch):
    monkeypatch.setattr(software, "plugins", lambda: {"jax-cuda13-plugin": software.installed("jax")})
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/local/cuda/lib64")
    assert_says(only(software.accelerators), WARN, "/usr/local/cuda/lib64", "unset LD_LIBRARY_PATH")


def test_small_shared_memory(monkeypatch):
    monkeypatch.setattr(system, "total_bytes", lambda _: 32 * 2**20)
    assert_says(only(system.shared_memory), WARN, "33.6 MB", "--shm-size")
    monkeypatch.setattr(system, "total_bytes", lambda _: 64 * 2**20)  # as Docker makes it
    assert_says(only(system.shared_memory), OK, "67.1 MB")


def test_lock_held(run):
    assert_says(only(past.lock, run=run), OK, "free")
    lock = rundir.take_lock(run)
    try:
        found = only(past.lock, run=run)
        assert_says(found, WARN, f"in use by pid {os.getpid()} on {platform.node()}", f"kill {os.getpid()}")
        os.pwrite(lock, b"pid 7 on far.away since 2026-01-01T00:00:00+0000  ", 0)
        assert_says(only(past.lock, run=run), WARN, "pid 7 on far.away", "ssh far.away kill 7")
        os.pwrite(lock, f"pid {2**22 + 1} on {platform.node()} since now".ljust(60).encode(), 0)
        assert_says(only(past.lock, run=run), WARN, "that one has ended", "fuser -v")
    finally:
        os.close(lock)
    assert_says(only(past.lock, run=run), OK, "free; last held by")


def test_relative_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert_says(
        only(disk.runs, logdir="here/runs"), WARN, f"{tmp_path}/here/runs", f"--logdir={tmp_path}/here"
    )
    assert_says(only(disk.runs), OK, f"{tmp_path}/runs (will be made)")
    assert_says(only(disk.runs, logdir="~"), OK, str(pathlib.Path.home()))
    assert not (tmp_path / "here").exists()


# The machine.


def test_python(monkeypatch):
    assert_says(only(software.python), OK, platform.python_version())
    monkeypatch.setattr(software.platform, "python_version", lambda: "3.9.1")
    assert_says(only(software.python), FAULT, "3.9.1, but jaxrl needs >=3.11", "3.13")


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc__self__cgroup": "0::/a/b\n",
            "sys__fs__cgroup__a__cpu.max": "150000 100000\n",
            "sys__fs__cgroup__a__b__cpu.max": "max 100000\n",
            "sys__fs__cgroup__a__memory.max": "4000000000\n",
            "sys__fs__cgroup__a__b__memory.max": "max\n",
        },
        {  # as a container sees itself: its path is one of the host
            "proc__self__cgroup": "0::/docker/1234\n",
            "sys__fs__cgroup__cpu.max": "150000 100000\n",
            "sys__fs__cgroup__memory.max": "4000000000\n",
        },
        {
            "proc__self__cgroup": "4:memory:/x\n3:cpu,cpuacct:/\n1:name=systemd:/\n",
            "sys__fs__cgroup__cpu__cpu.cfs_quota_us": "150000",
            "sys__fs__cgroup__cpu__cpu.cfs_period_us": "100000",
            "sys__fs__cgroup__memory__x__memory.limit_in_bytes": "4000000000",
            "sys__fs__cgroup__memory__memory.limit_in_bytes": str(2**63 - 4096),
        },
    ],
)
def test_limits_of_a_container(monkeypatch, tmp_path, files):
    monkeypatch.setattr(system, "ROOT", machine(tmp_path, **files))
    monkeypatch.setattr(system, "usable_cores", lambda: 16)
    monkeypatch.setattr(system, "total_memory", lambda: 64 * 10**9)
    assert_says(only(system.cores), WARN, "may use 1.5, but programs see 16", "taskset -c 0 python")
    assert_says(only(system.memory), WARN, "ended at 4 GB", "--replay.budget_gb=2")


def test_no_limits(monkeypatch, tmp_path):
    files = {"proc__self__cgroup": "0::/\n", "proc__meminfo": "MemTotal: 9 kB\nMemAvailable: 1000000 kB\n"}
    monkeypatch.setattr(system, "ROOT", machine(tmp_path, **files))
    assert only(system.cores).mark == OK
    assert_says(only(system.memory), WARN, "1.02 GB of it free", "--replay.budget_gb")


def test_few_open_files(monkeypatch):
    monkeypatch.setattr(system.resource, "getrlimit", lambda _: (256, 4096))
    assert_says(only(system.open_files), WARN, "256", "ulimit -n 4096")


@pytest.mark.parametrize(
    ("name", "value", "says", "remedy"),
    [
        ("XLA_FLAGS", "--xla_a=1 xla_b=2", "xla_b=2", "export XLA_FLAGS='--xla_a=1'"),
        ("XLA_FLAGS", "--xla_force_host_platform_device_count=8", "poses as several", "unset XLA_FLAGS"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", "75", "above 0 and at most 1", "=0.75"),
        ("XLA_PYTHON_CLIENT_MEM_FRACTION", ".x", ".x: must be", "=0.75"),
        ("XLA_PYTHON_CLIENT_ALLOCATOR", "platform", "slow", "unset XLA_PYTHON_CLIENT_ALLOCATOR"),
        ("JAX_DISABLE_JIT", "1", "JAX_DISABLE_JIT=1", "unset JAX_DISABLE_JIT"),
    ],
)
def test_variables(monkeypatch, name, value, says, remedy):
    monkeypatch.setenv(name, value)
    assert_says(only(system.variables), WARN, says, remedy)


def test_variables_that_are_fine_are_told(monkeypatch):
    assert_says(only(system.variables), OK, "none is set")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    assert_says(only(system.variables), OK, "XLA_PYTHON_CLIENT_MEM_FRACTION=.9")


def test_a_card_that_others_use(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "ROOT", machine(tmp_path, **CARD))
    monkeypatch.setattr(device.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(device, "smi", lambda: ["NVIDIA H200, 580.65.06, 90000, 143771", "B, 1, 1, 90"])
    used, idle = device.cards(device.hardware())
    assert_says(
        used, WARN, "NVIDIA H200, driver 580.65.06, 90000 of 143771 MiB", "--runtime.mem_fraction=0.3"
    )
    assert_says(idle, OK, "1 of 90 MiB")

    def hang():
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(device, "smi", hang)
    (silent,) = device.cards(device.hardware())
    assert_says(silent, FAULT, "nvidia-smi gives no answer", "dmesg")


def test_devices_that_compute_wrongly_or_not_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    found = {"platform": "gpu", "kind": "H200", "count": 8, "memory": 1e11}
    for stage, says in ({"wrong": ["cuda:3"], "seconds": 1.0}, "wrong on cuda:3"), ({"error": "OOM"}, "OOM"):
        fake_child(monkeypatch, device, Answer({"find": found, "multiply": stage}, "ended"))
        assert_says(look(device.device)[0], FAULT, says, "nvidia-smi")
    fake_child(monkeypatch, device, Answer({}, "no answer within 60 s"))
    assert_says(only(device.device), FAULT, "no answer within 60 s", "--device=cpu")


def test_environments_that_end_the_process(monkeypatch):
    fake_child(
        monkeypatch,
        worlds,
        Answer({"games": {"count": 2, "missing": []}}, "the process was ended by SIGSEGV"),
    )
    broken, roms = look(worlds.envpool)
    assert_says(broken, FAULT, "SIGSEGV", "envpool")
    assert roms.mark == OK
    step = {"game": "pong", "shape": [64, 64, 3], "version": "1"}
    stages = {"games": {"count": 2, "missing": []}, "task": {"count": 9}, "step": step}
    fake_child(monkeypatch, worlds, Answer(stages, "the process was ended by SIGABRT"))
    assert_says(look(worlds.envpool)[-1], WARN, "SIGABRT", "libegl1")
    error = "env.observe=pixels: no OpenGL, since EGL finds no driver; apt-get install x"
    fake_child(monkeypatch, worlds, Answer(stages | {"picture": {"error": error}}, ""))
    assert_says(look(worlds.envpool)[-1], WARN, "EGL finds no driver", "apt-get install x")


# Folders.


def test_file_systems(monkeypatch, tmp_path):
    mounts = tmp_path / "mountinfo"
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/vda rw",
        f"2 1 0:5 / {tmp_path}/a\\040b rw shared:1 - fuse.gcsfuse x rw",
    ]
    mounts.write_text("\n".join(lines))
    monkeypatch.setattr(disk, "MOUNTS", mounts)
    assert disk.file_system(tmp_path) == "ext4"
    (tmp_path / "a b").mkdir()
    assert_says(only(disk.runs, logdir=f"{tmp_path}/a b"), WARN, "object store", "--logdir=")


def test_folders_that_cannot_do_what_runs_need(monkeypatch, tmp_path):
    bad = disk.Trial("two can hold the same", "Operation not permitted", 4_000.0)
    monkeypatch.setattr(disk, "try_out", lambda _: bad)
    lock, rename, slow = look(disk.runs, logdir=str(tmp_path))
    assert_says(lock, FAULT, "locks do not work", "--logdir=")
    assert_says(rename, FAULT, "Operation not permitted", "--logdir=")
    assert_says(slow, WARN, "4,000 ms", "--logdir=")
    monkeypatch.setattr(disk.fcntl, "flock", lambda *_: None)
    assert disk.lock_trial(tmp_path / "lock") == "two can hold the same"


def test_leaves_nothing_behind(tmp_path):
    look(disk.runs, logdir=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_damaged_entries_of_the_compile_cache(monkeypatch, tmp_path):
    packed = zlib.compress(os.urandom(10_000))
    entries = {
        "whole": packed,
        "zstd": disk.ZSTD + b"?",
        "half": packed[:5_000],
        "empty": b"",
        "other": b"abcdef",
    }
    entries["flipped"] = packed[:-1] + bytes([packed[-1] ^ 1])
    for name, content in entries.items():
        (tmp_path / f"{name}-cache").write_bytes(content)
    (tmp_path / "whole-atime").write_bytes(b"12345678")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert_says(only(disk.cache), WARN, "6 programs, ", f"rm -r {tmp_path}")
    (tmp_path / "other-cache").unlink()
    found = only(disk.cache)
    assert_says(found, WARN, "3 of them damaged")
    assert {pathlib.Path(x).name for x in shlex.split(found.remedy)} == {
        "rm",
        *(f"{x}-cache" for x in ("half", "empty", "flipped")),
    }
    subprocess.run(shlex.split(found.remedy), check=True)
    assert_says(only(disk.cache), OK, "2 programs")


def test_a_compile_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", f"{tmp_path}/file/cache")
    assert_says(only(disk.cache), WARN, "is a file", "JAX_COMPILATION_CACHE_DIR=")


# Runs.


def test_a_run_that_is_well(run):
    for check in (past.lock, past.config, past.checkpoints, past.rows, past.ending):
        assert {x.mark for x in look(check, run=run)} == {OK}
    assert_says(look(past.checkpoints, run=run)[0], OK, "step 80, 1 kB, digests right")
    assert_says(look(past.checkpoints, run=run, fast=True)[0], OK, "sizes right")
    assert_says(only(past.rows, run=run), OK, "3 rows, the last at step 80; 2 episodes")
    assert_says(only(past.ending, run=run), OK, "done at 2026")


def spoil(file: pathlib.Path) -> None:
    file.write_bytes(b"1" + file.read_bytes()[1:])


def test_damaged_checkpoints(run):
    home = run / "checkpoints" / "latest"
    spoil(home / "80" / "array")
    assert look(past.checkpoints, run=run, fast=True)[0].mark == OK, "it looks at sizes only"
    found = look(past.checkpoints, run=run)[0]
    assert_says(
        found,
        WARN,
        "latest/80 is damaged: array has changed since it was written; intact is step 40",
        "start the run",
    )
    (home / "80" / "array").write_bytes(b"0")
    assert_says(look(past.checkpoints, run=run, fast=True)[0], WARN, "80 is damaged: array")
    (home / "40" / "array").unlink()
    assert_says(
        only(past.checkpoints, run=run),
        FAULT,
        "2 checkpoints, none intact; latest/80: array",
        f"put {home}/80 back",
    )
    assert (home / "80").is_dir() and (home / "40").is_dir(), "nothing is renamed"


def test_checkpoints_that_are_gone_or_were_never_made(run):
    (run / "checkpoints").rename(run.parent / "elsewhere")
    assert_says(only(past.checkpoints, run=run), FAULT, "tells of 2 checkpoints", "from a copy")
    (run / "checkpoint_log.jsonl").unlink()
    assert_says(only(past.checkpoints, run=run), OK, "no checkpoint yet")


@pytest.mark.parametrize(("free", "mark"), [(1_500, WARN), (900, FAULT), (10_000, OK)])
def test_room_for_the_next_checkpoint(monkeypatch, run, free, mark):
    monkeypatch.setattr(disk, "free_bytes", lambda _: free)
    assert_says(look(past.checkpoints, run=run)[1], mark, "next checkpoint takes about 1 kB")


def test_a_config_that_is_damaged_comes_back(run):
    whole = (run / "config.json").read_text()
    (run / "config.json").write_text(whole[:100])
    found = only(past.config, run=run)
    assert_says(found, FAULT, "config.json: cannot be read")
    words = shlex.split(found.remedy)
    subprocess.run([sys.executable, *words[1:]], check=True)
    assert json.loads((run / "config.json").read_text()) == json.loads(whole)
    assert_says(only(past.config, run=run), OK, "debug, toy_clock, dreamer, seed 0, 80 env_steps")


def test_a_config_of_another_version(run):
    values = json.loads((run / "config.json").read_text())
    rundir.write_json(run / "config.json", values | {"opt.gone": 1})
    assert_says(only(past.config, run=run), OK, "no longer exist are left out: opt.gone")
    rundir.write_json(run / "config.json", values | {"opt.lr": "fast"})
    assert_says(only(past.config, run=run), FAULT, "opt.lr=fast", "config.json")


def test_a_task_that_is_gone(monkeypatch, run):
    known = dict(inside.envpool("toy_clok"))["task"]
    with pytest.raises(ValueError, match="toy_clok") as raised:
        known()
    stages = {"games": {"count": 1, "missing": []}, "task": {"error": str(raised.value)}}
    fake_child(monkeypatch, worlds, Answer(stages, "ended"))
    assert_says(look(worlds.envpool, run=run)[-1], FAULT, "toy_clok", "toy_clock")


def test_broken_lines(run):
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 90, "x\n[1]\n{"step": 100}\n{"step": 1')
    assert_says(only(past.rows, run=run), WARN, "metrics.jsonl: 2 lines cannot be read")


@pytest.mark.parametrize(
    ("reason", "mark", "says", "remedy"),
    [
        ("stopped", OK, "stopped at 2026", ""),
        (None, WARN, "without a word", "jaxrl.train --logdir="),
        (
            "WriteFailed: /x: No space left",
            WARN,
            "failed at 2026-01-01T00:00:00+0000: WriteFailed: /x",
            "--logdir=",
        ),
        ("Diverged: not finite", WARN, "Diverged", "nan_report.json says"),
    ],
)
def test_endings(run, reason, mark, says, remedy):
    note = json.loads((run / "run.json").read_text())
    rundir.write_json(run / "run.json", note | {"exit": reason})
    (run / "nan_report.json").write_text("{}")
    assert_says(only(past.ending, run=run), mark, says, remedy)


def test_versions_that_have_changed(run):
    note = json.loads((run / "run.json").read_text())
    rundir.write_json(run / "run.json", note | {"versions": {"jax": "0.0.1", "gone": "1"}})
    assert_says(look(past.ending, run=run)[1], OK, "jax 0.0.1 -> ")
    (run / "run.json").write_text("{")
    assert_says(only(past.ending, run=run), WARN, "run.json cannot be read", "writes a new one")


# Children.


def test_a_child_that_crashes_is_told_with_its_last_words(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "ROOT", tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    found = only(device.device, device="cpu")
    assert_says(
        found,
        FAULT,
        "the process ended with code 1: Unknown flag in XLA_FLAGS: --xla_no_such_flag=1",
        "unset XLA_FLAGS",
    )


def test_a_child_that_hangs_is_ended():
    began = time.monotonic()
    answer = child.ask("envpool", "", limit_s=0.2)
    assert answer.error("step") == answer.failure == "no answer within 0.2 s"
    assert time.monotonic() - began < 3


def test_last_words():
    err = "F1128 17:55:42.3 15201 a.cc:171] Check failed: x == y\n*** Check failure stack: ***\n    @ 0x7f\n"
    assert child.ending(-6, err) == "the process was ended by SIGABRT: Check failed: x == y"
    err = 'Traceback (most recent call last):\n  File "a.py", line 1\n    x\n    ^\nImportError: no libGL\n'
    assert child.ending(1, err) == "the process ended with code 1: ImportError: no libGL"
    assert child.ending(0, "") == "the process ended with code 0: it said nothing"


def test_what_libraries_print_is_passed_over():
    out = b'hello\n{"stage": 3}\n[1]\n{"stage": "a", "x": 1}\n\xff{\n'
    assert child.told(out) == {"a": {"x": 1}}


# The command.


def check(name, *findings, error=None, hangs=0.0):
    def work(wish):
        yield from findings
        if error:
            raise error
        time.sleep(hangs)

    return checks.Check(name, work)


def command(capsys, monkeypatch, made, *words, code=0):
    """Output of the command with other checks."""
    monkeypatch.setattr(checks, "CHECKS", tuple(made))
    assert doctor.main(list(words)) == code
    return capsys.readouterr().out


def test_exit_codes_and_lines(capsys, monkeypatch):
    good, bad = Finding(OK, "a", "is well"), Finding(WARN, "b", "is slow", "do this")
    text = command(capsys, monkeypatch, [check("a", good), check("b", bad)])
    assert text.splitlines()[1:4] == [
        "ok     a              is well",
        "warn   b              is slow",
        "       -> do this",
    ]
    assert "1 ok, 1 warn, 0 fault" in text
    text = command(capsys, monkeypatch, [check("a", Finding(FAULT, "a", "is broken", "mend it"))], code=2)
    assert "fault  a              is broken\n       -> mend it\n" in text


def test_one_check_does_not_take_the_others_down(capsys, monkeypatch):
    monkeypatch.setattr(checks, "QUICK_S", 0.3)
    made = [
        check("raises", Finding(OK, "raises", "began"), error=ZeroDivisionError("by\nzero")),
        check("hangs", Finding(OK, "hangs", "began"), hangs=5),
        check("last", Finding(OK, "last", "is well")),
    ]
    text = command(capsys, monkeypatch, made, code=2)
    assert "raises         could not be looked at: ZeroDivisionError: by\n" in text
    assert "fault  hangs          no answer within 0.3 s" in text
    assert text.count("began") == 2 and "last           is well" in text


def test_json_is_one_strict_object(capsys, monkeypatch):
    made = [check("a", Finding(OK, "a", "is well")), check("b", Finding(FAULT, "b", "is broken", "mend it"))]
    text = command(capsys, monkeypatch, made, "--json", code=2)
    record = json.loads(text, parse_constant=pytest.fail)
    assert record["counts"] == {"ok": 1, "warn": 0, "fault": 1}
    assert record["checks"] == [
        {"mark": "ok", "name": "a", "found": "is well", "remedy": None},
        {"mark": "fault", "name": "b", "found": "is broken", "remedy": "mend it"},
    ]


def test_no_secret_is_told(capsys, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", KEY)
    text = command(capsys, monkeypatch, [check("a", Finding(WARN, "a", f"has {KEY}", f"use {KEY}"))])
    assert KEY not in text and "has ***" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/nowhere"], "no such folder"),
        (["{tmp}"], "is no run directory"),
        (["--devcie=cpu"], "did you mean --device?"),
        (["--device=abacus"], "abacus"),
        (["a", "b"], "b: one word too many"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, tmp_path, words, says):
    assert doctor.main([x.format(tmp=tmp_path) for x in words]) == 2
    text = capsys.readouterr().err
    assert text.startswith("jaxrl: ") and text.count("\n") == 1 and says in text


def started(*words: str, **variables: str) -> subprocess.CompletedProcess:
    """A command in a process of its own, without variables that tests are given."""
    mine = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        [sys.executable, *words],
        check=False,
        env=mine | variables,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_fast_imports_neither_jax_nor_envpool(run):
    script = (
        "import sys; from jaxrl import doctor; code = doctor.main(sys.argv[1:]); "
        "print(code, *(x for x in ('jax', 'envpool', 'mujoco', 'PIL') if x in sys.modules))"
    )
    done = started("-c", script, str(run), "--fast")
    assert done.stdout.splitlines()[-1] in ("0", "2"), done.stdout + done.stderr
    assert "left out with --fast" in done.stdout and "run: latest" in done.stdout


def test_the_whole_command(run):
    """As a user gives it: all is looked at, what must work does, and no secret is told or kept."""
    done = started("-m", "jaxrl.doctor", str(run), "--json", WANDB_API_KEY=KEY, MY_PASSWORD=KEY[::-1])
    assert not done.stderr, done.stderr
    record = json.loads(done.stdout)
    marks = {x["name"]: x["mark"] for x in record["checks"]}
    for name in (
        "python",
        "device",
        "physics",
        "envpool",
        "roms",
        "video",
        "run: task",
        "run: latest",
        "run: rows",
    ):
        assert marks[name] == OK, done.stdout
    assert {"opengl", "dmc pixels", "wandb", "runs folder", "compile cache"} <= set(marks)
    assert done.returncode == (2 if FAULT in marks.values() else 0)
    assert KEY not in done.stdout and KEY[::-1] not in done.stdout
    assert reading.open_past(run).state == "done"
    assert sorted(x.name for x in run.parent.iterdir()) == ["run"], "nothing is left in the folder for runs"


@pytest.mark.skipif(device.hardware().nvidia, reason="there is a card")
@pytest.mark.parametrize(
    ("flag", "variables", "says"),
    [
        (
            "gpu",
            {},
            "device=gpu: only cpu is available; use --device=cpu, or see what python -m jaxrl.doctor",
        ),
        ("gpu", {"JAX_PLATFORMS": "cpu"}, "device=gpu: JAX_PLATFORMS=cpu excludes it; unset that variable"),
        ("auto", {"JAX_PLATFORMS": "cuda"}, "nothing found for JAX_PLATFORMS=cuda"),
        ("auto", {"MUJOCO_GL": "elg"}, "MUJOCO_GL=elg: mujoco does not know it; unset that variable"),
    ],
)
def test_training_without_the_device_ends_with_one_line(tmp_path, flag, variables, says):
    words = ("-m", "jaxrl.train", "--config=debug", f"--device={flag}", f"--logdir={tmp_path}/run")
    done = started(*words, **variables)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and says in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_mujoco_that_cannot_be_imported_is_told_in_one_line():
    script = (
        "import sys; from jaxrl.config import EnvConfig; from jaxrl.envs import device_env\n"
        "sys.modules['mujoco'] = None\n"
        "device_env('mjx_cartpole_balance', EnvConfig())"
    )
    done = started("-c", script)
    assert "ConfigError: task=mjx_cartpole_balance: mujoco cannot be imported" in done.stderr
    assert "unset MUJOCO_GL, or see python -m jaxrl.doctor" in done.stderr


def test_threads_of_checks_do_not_keep_a_process_alive():
    checks.Trial(check("hangs", hangs=0.5), Wish(), threading.BoundedSemaphore(1))
    assert [x.daemon for x in threading.enumerate() if x.name == "hangs"] == [True]
