"""The run directory: made once, continued by the same command, never mixed with another run."""

import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import subprocess
import time
import uuid
from typing import Any

from jaxrl.config import Config, ConfigError, difference, from_dict, show, to_dict
from jaxrl.exits import Locked, WriteFailed

# Settings that may change when a run is continued: they move no result, or only extend it.
FREE = ("steps", "logdir", "device", "log_every", "eval_every", "eval_eps", "save_every", "save_seconds")
FREE += ("eval_initial", "env.threads", "replay.placement", "replay.budget_gb", "replay.save_episodes")
FREE_SECTIONS = ("terminal", "tensorboard", "checkpoint", "runtime", "eval")


@dataclasses.dataclass(frozen=True)
class RunDir:
    path: pathlib.Path
    continued: bool
    lock: int  # file descriptor that holds the lock

    @property
    def checkpoints(self) -> pathlib.Path:
        return self.path / "checkpoints" / "latest"

    def close(self) -> None:
        """Lets the next process in."""
        os.close(self.lock)

    def begin(self, config: Config, argv: list[str]) -> None:
        """From here on the run is this command's; until here a run that is continued was only read."""
        try:
            write_json(self.path / "config.json", to_dict(config))
        except OSError as error:
            raise WriteFailed(f"{self.path}: {error.strerror or error}") from error
        started = {"resumed": now() if self.continued else None, "exit": None, "ended": None}
        self.note(argv=argv, pid=os.getpid(), **started)

    def note(self, **fields: Any) -> None:
        """Adds fields to run.json. Raises WriteFailed."""
        file = self.path / "run.json"
        try:
            record = json.loads(file.read_text()) if file.exists() else {}
            write_json(file, record | fields)
        except (OSError, ValueError) as error:
            raise WriteFailed(f"{file}: {error}") from error


def default_path(config: Config, preset: str) -> pathlib.Path:
    """runs/<config>/<task>-<time>-<seed>"""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return pathlib.Path("runs") / preset / f"{config.task}-{stamp}-{config.seed}"


def open_run(config: Config, preset: str) -> RunDir:
    """Creates the run directory, or opens it to continue the run that it holds (which is not changed yet).

    Raises:
      ConfigError: if it cannot be written, or holds something else, or a run of another config.
      Locked: if another process works in it.
    """
    path = pathlib.Path(config.logdir).expanduser() if config.logdir else default_path(config, preset)
    path = path.resolve()
    try:
        if (path / "config.json").exists():
            check_same(path, config)
        elif path.is_dir() and any(name.name != "run.lock" for name in path.iterdir()):
            raise ConfigError(
                f"logdir={show(str(path))}: holds files but no run (no config.json); choose another"
            )
        path.mkdir(parents=True, exist_ok=True)
        lock = take_lock(path)
        # Looked at again under the lock: another process may have started the run in between.
        continued = (path / "config.json").exists()
        if continued:
            check_same(path, config)
        else:
            write_json(path / "config.json", to_dict(config))
    except OSError as error:
        raise ConfigError(
            f"logdir={show(str(path))}: {error.strerror}; choose a folder that can be written"
        ) from error
    run = RunDir(path, continued, lock)
    if not continued:
        run.note(
            id=uuid.uuid4().hex[:12], config=preset, started=now(), host=platform.node(), git=git_state()
        )
    return run


def check_same(path: pathlib.Path, config: Config) -> None:
    """Raises ConfigError if `path` holds a run whose results depend on other settings."""
    try:
        saved = from_dict(json.loads((path / "config.json").read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"logdir={show(str(path))}: its config.json cannot be read ({error})") from error
    changed = {
        name: values
        for name, values in difference(saved, config).items()
        if name not in FREE and name.split(".")[0] not in FREE_SECTIONS
    }
    if changed:
        diff = ", ".join(f"{name}: {show(a)} there, {show(b)} now" for name, (a, b) in changed.items())
        raise ConfigError(
            f"logdir={show(str(path))}: holds a run of another config ({diff}); choose another logdir"
        )


def take_lock(path: pathlib.Path) -> int:
    """Locks the run directory for this process; freed when it ends, however it ends."""
    file = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(file, 1000).decode(errors="replace").strip()
        os.close(file)
        raise Locked(
            f"logdir={show(str(path))}: in use by {holder or 'another process'}; wait or stop it"
        ) from error
    os.ftruncate(file, 0)
    os.write(file, f"pid {os.getpid()} on {platform.node()} since {now()}".encode())
    return file


def git_state() -> dict[str, Any] | None:
    """Commit and dirtiness of the program's own checkout; None if it is not one."""
    root = pathlib.Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def write_json(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Replaces a JSON file as a whole, so that no reader ever sees half of it."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(fresh, path)
