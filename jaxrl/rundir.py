"""The run directory: made once, continued by the same command, never mixed with another run.

Reading what a run has saved costs no import of jax: the command line is resolved with it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import re
import subprocess
import time
import uuid
from collections.abc import Mapping
from typing import Any

from jaxrl import changes, manifest
from jaxrl.changes import BIRTH, OF_COMMAND, Origin
from jaxrl.config import Config, ConfigError, replace, show, to_dict
from jaxrl.exits import Locked, NoCheckpoint, WriteFailed

LARGEST = 2**20  # bytes of config.json and run.json; whatever is larger was not written here
UNBORN = ("run.lock", "config.json.new")  # what a process leaves that dies before its run is begun
SEVERAL = "several runs; name one, or all --seeds and --tasks"
NO_RUN = "files but no run (no config.json); choose another"
NAMES = "name a run directory or a folder in its checkpoints/"


@dataclasses.dataclass(frozen=True)
class RunDir:
    path: pathlib.Path
    continued: bool
    lock: int  # file descriptor that holds the lock
    preset: str

    def close(self) -> None:
        """Lets the next process in."""
        os.close(self.lock)

    def begin(
        self,
        config: Config,
        argv: list[str],
        step: int,
        changed: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> None:
        """From here on the run is this command's; until here a run that is continued was only read.

        Args:
          argv: the command line.
          step: env_steps that the run goes on from.
          changed: settings that the command has changed.
          identity: id and lineage of the run as its checkpoint has them, for a run.json that is damaged.
        """
        try:
            write_json(self.path / "config.json", to_dict(config))
            record = self._mended()
        except OSError as error:
            raise WriteFailed(f"{self.path}: {error.strerror or error}") from error
        start = {"time": now(), "step": step, "argv": argv, "pid": os.getpid(), "host": platform.node()}
        starts, own = record.get("starts"), "run" in identity  # begun again, it may have other ancestors
        self.note(
            id=record.get("id") or identity.get("run") or new_id(),
            config=self.preset,
            lineage=(own and list_of_dicts(record.get("lineage"))) or list_of_dicts(identity.get("lineage")),
            starts=[*list_of_dicts(starts), start | ({"changed": dict(changed)} if changed else {})],
            exit=None,
            ended=None,
        )

    def _mended(self) -> dict[str, Any]:
        """run.json; one that cannot be read is renamed, since a record is no reason not to go on."""
        file = self.path / "run.json"
        try:
            return read_json(file) if file.exists() else {}
        except ValueError:
            file.rename(unused(file.with_name("run.json.damaged")))
            return {}

    def identity(self) -> dict[str, Any]:
        """What every checkpoint says about its run."""
        record = self._mended()
        return {"run": record.get("id"), "lineage": list_of_dicts(record.get("lineage"))}

    def note(self, **fields: Any) -> None:
        """Adds fields to run.json. Raises WriteFailed."""
        file = self.path / "run.json"
        try:
            record = read_json(file) if file.exists() else {}
            write_json(file, record | fields)
        except (OSError, ValueError) as error:
            raise WriteFailed(f"{file}: {error}") from error


def default_path(config: Config, preset: str) -> pathlib.Path:
    """runs/<config>/<task>-<time>-<seed>, with a number behind it if that was begun in this very second."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return unused(pathlib.Path("runs") / preset / f"{config.task}-{stamp}-{config.seed}")


def open_run(config: Config, origin: Origin) -> RunDir:
    """Creates the run directory, or opens it to continue the run that it holds (which is not changed yet).

    Args:
      origin: what the command's flags were put on.

    Raises:
      ConfigError: if it cannot be written, or holds something else.
      Locked: if another process works in it, or has since the command was read.
    """
    path = located("logdir", config.logdir) if config.logdir else default_path(config, origin.preset)
    path = path.resolve()
    try:
        is_new = origin.saved is None and not (path / "config.json").exists()
        if is_new and path.is_dir() and any(name.name not in UNBORN for name in path.iterdir()):
            what = SEVERAL if any(path.glob("*/config.json")) else NO_RUN
            raise ConfigError(f"logdir={show(str(path))}: holds {what}")
        path.mkdir(parents=True, exist_ok=True)
        run = RunDir(path, origin.saved is not None, take_lock(path), origin.preset)
        try:
            check_unchanged(path, origin)
            if not run.continued:
                write_json(path / "config.json", to_dict(config))
        except BaseException:
            run.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"logdir={show(str(path))}: {error.strerror}; choose a folder that can be written"
        ) from error
    if not run.continued:
        run.note(id=new_id(), config=origin.preset, started=now(), host=platform.node(), git=git_state())
    return run


def check_unchanged(path: pathlib.Path, origin: Origin) -> None:
    """Raises Locked if the run was begun or continued by another process since the command was read."""
    file = path / "config.json"
    if (read_config(file) if file.exists() else None) != origin.saved:
        raise Locked(
            f"logdir={show(str(path))}: another process has begun or changed the run there in this moment; "
            "give the command again"
        )


def origin_of(origin: Origin, named: bool) -> Origin:
    """What a command's flags are put on: the saved config of the run that it goes on with, if there is one.

    Args:
      origin: the preset, and the settings that the command gives.
      named: whether it names the preset.

    Raises:
      ConfigError: if it names another preset than that run's, or a saved config cannot be used.
      NoCheckpoint: if resume_from names a checkpoint that cannot be used.
    """
    given = dict(origin.given)
    for name in ("resume_from", "init_from"):
        if given.get(name):
            given[name] = str(located(name, str(given[name])))
    origin = dataclasses.replace(origin, given=given)
    if logdir := given.get("logdir"):
        path = located("logdir", str(logdir))
        if holds(path, "config.json"):
            values = read_config(path / "config.json")
            return on_saved(origin, named, values, path, path)
    for name in ("resume_from", "init_from"):
        if given.get(name) and not holds(pathlib.Path(str(given[name])), "."):
            raise ConfigError(f"{name}={show(given[name])}: no such folder; {NAMES}")
    if given.get("resume_from"):
        path = pathlib.Path(str(given["resume_from"]))
        values, run = config_of("resume_from", path)
        found = on_saved(origin, named, values, path, run)
        birth = {"resume_from": str(path), "init_from": "", "init_filter": Config().init_filter}
        return dataclasses.replace(found, config=replace(found.config, birth), saved=None)
    if given.get("init_from") and not holds(path := pathlib.Path(str(given["init_from"])), "config.json"):
        config_of("init_from", path)  # only whether there is one
    return origin


def on_saved(
    origin: Origin, named: bool, values: dict[str, Any], path: pathlib.Path, run: pathlib.Path
) -> Origin:
    """The origin of a command that goes on with a run.

    Args:
      values: the saved config.
      path: where it was read.
      run: the directory of its run.
    """
    given = dict(origin.given)
    preset = preset_of(run)
    if named and preset not in (None, origin.preset):
        if given.get("allow_config_change") is not True:
            raise ConfigError(
                f"--config={origin.preset}: {path} is of a run of --config={preset}; leave it out, choose "
                "another logdir, or try --allow_config_change"
            )
        whole = to_dict(origin.config)  # the other preset was asked for, so all of it counts as given
        given = {name: whole[name] for name in whole if name not in (*BIRTH, *OF_COMMAND)} | given
    # What "auto" means was resolved when the run began, and is not asked again.
    given = {k: x for k, x in given.items() if x != "auto" or changes.class_of(k) == "free" or k in BIRTH}
    try:
        config, notes = changes.saved_config(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: its saved config cannot be used: {error}") from error
    return Origin(
        config=config,
        given=given,
        preset=origin.preset if named else preset or "resumed",
        path=path,
        saved=values,
        notes=tuple(notes),
    )


def config_of(name: str, path: pathlib.Path) -> tuple[dict[str, Any], pathlib.Path]:
    """The saved config of a run, a checkpoint or the newest one of a store; and the run directory.

    Args:
      name: of the setting that says where.

    Raises:
      ConfigError: if there is none.
      NoCheckpoint: if there is only a damaged one.
    """
    if holds(path, "config.json"):
        return read_config(path / "config.json"), path
    inside = [x for x in path.glob("*") if re.fullmatch(r"\d{1,15}(\.\d{1,6})?", x.name)]
    damage = ""
    for folder in (path, *sorted(inside, key=lambda x: [*map(int, x.name.split("."))], reverse=True)):
        if holds(folder, manifest.NAME):
            try:
                values = manifest.read(folder).get("config")
            except (manifest.Damaged, manifest.TooNew) as error:
                damage = damage or str(error)
                continue
            return values if isinstance(values, dict) else {}, (folder / "../../..").resolve()
    if damage:
        raise NoCheckpoint(f"{name}={path}: {damage}; name another checkpoint, or the run directory")
    raise ConfigError(f"{name}={path}: holds neither a run nor a checkpoint; {NAMES}")


def ancestor_of(run: pathlib.Path) -> str | None:
    """The checkpoint of another run that a run has begun with; None if its run.json tells of none."""
    entries = list_of_dicts(noted(run, "lineage"))
    path = entries[-1].get("path") if entries else None
    return path if isinstance(path, str) else None


def ending_of(run: pathlib.Path) -> str:
    """How the newest start of a run ended, by its run.json; "" if that does not tell."""
    ended = noted(run, "exit")
    return ended if isinstance(ended, str) else ""


def preset_of(run: pathlib.Path) -> str | None:
    """The preset of a run, by its run.json; None if that does not tell."""
    name = noted(run, "config")
    return name if isinstance(name, str) and re.fullmatch("[a-z0-9][a-z0-9_]{0,63}", name) else None


def noted(run: pathlib.Path, name: str) -> Any:
    """A field of a run's run.json; None if it cannot be read, or has none."""
    with contextlib.suppress(OSError, ValueError):
        return read_json(run.expanduser() / "run.json").get(name)


def read_config(file: pathlib.Path) -> dict[str, Any]:
    """Raises ConfigError if a config.json cannot be read."""
    try:
        return read_json(file)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file.parent}: its config.json cannot be read ({error}); put it back (every checkpoint's "
            "manifest.json has a copy), or choose another logdir"
        ) from error


def located(name: str, text: str) -> pathlib.Path:
    """The absolute path that a setting names. Raises ConfigError if it cannot be one."""
    try:
        return pathlib.Path(text).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{name}={show(text)}: cannot be a path ({error}); choose another") from error


def holds(path: pathlib.Path, name: str) -> bool:
    """There is such a file in the folder, as far as one can see."""
    try:
        return path.is_dir() and (path / name).exists()
    except OSError:
        return False


def check_free(logdir: str) -> None:
    """Raises Locked if another process works in a run directory; before anything slow is imported."""
    if logdir and holds(path := located("logdir", logdir), "run.lock"):
        try:
            file = open(path / "run.lock")
        except OSError:
            return  # to be told by `open_run`
        with file:
            lock_file(file.fileno(), path, fcntl.LOCK_SH)


def take_lock(path: pathlib.Path) -> int:
    """Locks the run directory for this process; freed when it ends, however it ends."""
    file = os.open(path / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        lock_file(file, path, fcntl.LOCK_EX)
    except BaseException:
        os.close(file)
        raise
    os.ftruncate(file, 0)
    os.write(file, f"pid {os.getpid()} on {platform.node()} since {now()}".encode())
    return file


def lock_file(file: int, path: pathlib.Path, kind: int) -> None:
    """Raises Locked if the lock of a run directory is held by another process, and stays so a moment."""
    for left in range(9, -1, -1):  # one that only looks lets go at once
        try:
            return fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not left:
                holder = os.pread(file, 1000, 0).decode(errors="replace").strip()
                raise Locked(
                    f"logdir={show(str(path))}: in use by {holder or 'another process'}; wait or stop it"
                ) from error
        time.sleep(0.02)


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


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def list_of_dicts(value: Any) -> list[dict[str, Any]]:
    """The entries of a list that are what they should be; a file that was edited may hold anything."""
    return [x for x in value if isinstance(x, dict)] if isinstance(value, list) else []


def unused(path: pathlib.Path, mark: str = "-") -> pathlib.Path:
    """The first of path, path-2, path-3 ... that does not exist."""
    fresh, number = path, 1
    while fresh.exists():
        number += 1
        fresh = path.with_name(f"{path.name}{mark}{number}")
    return fresh


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object. Raises OSError, or ValueError with what is wrong."""
    if not path.is_file():
        raise ValueError("it is no file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"it is larger than {LARGEST:,} bytes")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(record, dict):
        raise ValueError("it holds no JSON object")
    return record


def write_json(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Replaces a JSON file as a whole, so that no reader ever sees half of it, not even after a power cut."""
    fresh = path.with_name(path.name + ".new")
    with open(fresh, "w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
    manifest.sync(path.parent)
