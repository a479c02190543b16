"""Weights & Biases: metrics, tables, videos and checkpoints, sent by a process of its own (wandb_process.py).

What W&B does, or fails to do, stays in that process. Where it cannot be reached, everything is kept in wandb/
of the run directory, to be sent later.

* Metrics: every row, over env_steps. A run that is continued goes on in the same W&B run; rows that it makes
  again are left out where W&B has them. An offline run begins with the rows from before, so that it is whole.
* tables/episodes and tables/checkpoints, the newest 1,000 of each, and tables/samples, 10 of the last
  evaluation. A table is sent as a whole, after a row, where it has changed, at 100 bytes a second on average.
* Videos; the best and the lasting checkpoints, as versions of the artifact model-<id of the run>. Those of
  checkpoints/latest, which hold replay, are not sent. W&B copies what it sends; offline, where the copies
  stay, they end at 1 GB.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from jaxrl import runtime
from jaxrl.config import WandbConfig
from jaxrl.schema import Value
from jaxrl.sinks.jsonl import encode_row
from jaxrl.sinks.link import Broken, Link
from jaxrl.sinks.row import Event, Row, Samples, Saved, Sink, Video
from jaxrl.sinks.tables import EPISODES, FOLDER, checkpoint_rows

OTHER_END = Path(__file__).with_name("wandb_process.py")
NEWEST = 1_000  # rows of a table that are sent
SAMPLED = 10  # episodes of an evaluation that are sent
SHOWN = 50  # of an episode's actions and rewards
PAUSE_S, BYTES_PER_S = 60.0, 100.0  # of one table: at least the pause, at most the speed
SENT_STORES = ("best", "periodic")
VIDEOS = (".mp4", ".gif", ".webm", ".ogg")  # what W&B shows
COLUMNS = {
    "episodes": "episode env_steps score length success seconds",
    "checkpoints": "episode env_steps run_seconds save_seconds score reason file bytes",
    "samples": "step episode env score length success actions rewards",
}
ORIGIN = ("id", "config", "started", "host", "git", "lineage", "versions", "device")  # of run.json
ENDED_WELL = ("done", "stopped")  # the reasons in run.json


@dataclasses.dataclass(frozen=True)
class Patience:
    """Seconds that W&B is waited for. Only this sink's own thread waits."""

    server: float = 20.0  # wandb waits for its server, when a run begins
    start: float = 40.0  # for the process to be ready, that included
    offline: float = 60.0  # the same, where there is no server to wait for
    stall: float = 60.0  # for the process to take what it is sent
    finish: float = 25.0  # for the process to end; it goes on alone after that


@dataclasses.dataclass
class Table:
    """A table that is sent as a whole, where it has changed."""

    rows: Callable[[], list[list[Any]]]
    may_be_new: bool  # something may be in it that was not sent yet
    sent: str = "[]"
    not_before: float = 0.0  # time.monotonic


class WandB(Sink):
    """See the module. Says so where the package is missing, and is quiet; raises Broken once it is of no use.

    Args:
      run_dir: gets wandb/.
      settings: where to send it. What has its default there may be named by WANDB_PROJECT and its like.
      config: all settings of the run, by their dotted names.
      identity: id and lineage of the run; what is missing is taken from run.json.
      resume_step: env_steps that the run goes on from; None: a new run.
    """

    name = "wandb"
    takes: ClassVar[tuple[type, ...]] = (Row, Video, Saved, Samples)
    tick_s = 1.0
    slow_s = 30.0

    def __init__(
        self,
        run_dir: Path,
        settings: WandbConfig,
        config: Mapping[str, Value],
        identity: Mapping[str, Any],
        resume_step: int | None,
        patience: Patience | None = None,
    ) -> None:
        self._run_dir, self._settings, self._config = run_dir, settings, config
        self._identity, self._resume_step = dict(identity), resume_step
        self._patience = patience or Patience()
        self._link: Link | None = None
        self._answer: dict[str, Any] = {}  # the process's last one
        self._is_quiet = False  # there is nothing to talk to, or no more
        self._blamed: set[str] = set()  # kinds of things that could not be put together
        self._step, self._episodes = 0, -1  # of the last row
        self._samples: list[list[Any]] = []
        self._tables = {
            "episodes": Table(lambda: episode_rows(run_dir), True),
            "checkpoints": Table(lambda: newest_checkpoints(run_dir), True),
            "samples": Table(lambda: self._samples, False),
        }

    def take(self, event: Event) -> None:
        if self._link is None and not self._is_quiet:
            self._begin()
        if self._is_quiet:
            return
        match event:
            case Row():
                self._step = event.step
                self._tables["episodes"].may_be_new |= event.episodes != self._episodes
                self._episodes = event.episodes
                self._send(f'{{"do": "row", "row": {encode_row(event)}}}')
                self._send_tables()
            case Video():
                with self._tolerant("a video"):
                    if order := video_of(event):
                        self._send(json.dumps(order))
            case Saved():
                self._tables["checkpoints"].may_be_new = True
                if event.folder.parent.name in SENT_STORES:
                    with self._tolerant("a checkpoint"):
                        self._send(json.dumps(artifact_of(event)))
            case Samples():
                with self._tolerant("samples"):
                    self._samples = sample_rows(event)
                    self._tables["samples"].may_be_new = True
        self.tick()

    def tick(self) -> None:
        if self._link is not None:
            try:
                self._link.check()
            except Broken as error:
                self._give_up(error)
            if self._answer.get("state") == "over":
                self._give_up(Broken("it has ended"))

    def close(self) -> None:
        """Waits for what is left to be sent; what takes longer is finished without this process."""
        if self._link is None:
            return
        end = time.monotonic() + self._patience.finish
        try:
            self._tables["episodes"].may_be_new = True  # some may have ended since the last row
            self._send_tables(at_once=True)
            self._send(json.dumps({"do": "finish", "code": exit_code(self._run_dir)}))
        except Broken as error:
            return self.say(f"wandb: not finished ({error})")
        link, self._link, self._is_quiet = self._link, None, True
        if not link.end(end - time.monotonic()):
            self.say(f"wandb: not finished yet; goes on alone for some minutes at most (process {link.pid})")
        elif self._answer.get("state") != "finished":
            self.say(f"wandb: not finished ({self._answer.get('why') or link.fate()})")

    def _begin(self) -> None:
        """Starts the process. One that hangs, or cannot reach W&B, is replaced by one that works offline."""
        answer, why = self._start(self._settings.mode), ""
        if answer["state"] == "failed" and self._settings.mode != "offline":
            why = f" ({answer['why']})"
            answer = self._start("offline")
        match answer["state"]:
            case "ready" if answer["offline"]:
                return self.say(f"wandb: offline{why}; to send it later: wandb sync {answer['folder']}")
            case "ready":
                return self.say(f"wandb: {answer['url']}")
            case "disabled":
                self.say("wandb: disabled by WANDB_MODE, nothing is sent")
            case "missing":
                self.say(f"wandb: nothing is sent ({answer['why']}); pip install 'jaxrl[wandb]'")
            case _:
                self._give_up(Broken(f"it cannot be started: {answer['why']}"))
        self._is_quiet = True

    def _start(self, mode: str) -> dict[str, Any]:
        """The first answer of a new process, which is gone again if it is not ready."""
        kept = runtime.variable("WANDB_DATA_DIR") or str(self._run_dir / "wandb" / "data")
        # Copies of checkpoints on their way stay in the run. WANDB_SERVICE would lead to another's process.
        environment = runtime.environment({"WANDB_DATA_DIR": kept, "WANDB_SERVICE": None})
        seconds = self._patience.offline if mode == "offline" else self._patience.start
        self._answer, end = {}, time.monotonic() + seconds
        self._link = link = Link(OTHER_END, environment, self._hear)
        why = f"no answer within {seconds:.0f} s"
        try:
            link.send(json.dumps(self._order(mode) | {"copies": kept}), seconds)
            link.listen(end - time.monotonic(), until=lambda: bool(self._answer))
            link.check()
        except Broken as error:
            why = str(error)
        answer = self._answer or {"state": "failed", "why": why}
        if answer["state"] != "ready":
            link.kill()
            self._link = None
        return answer

    def _order(self, mode: str) -> dict[str, Any]:
        """What to begin with."""
        settings, usual = self._settings, WandbConfig()
        named = {"project": "project", "entity": "entity", "name": "run_name"}
        given = {theirs: getattr(settings, ours) for ours, theirs in named.items()}
        given = {
            theirs: given[theirs] for ours, theirs in named.items() if given[theirs] != getattr(usual, ours)
        }
        record = run_record(self._run_dir) | self._identity
        origin = {k: record[k] for k in ORIGIN if k in record}
        return {
            "given": given | ({"mode": mode} if mode == "offline" else {}),
            "otherwise": {
                "project": usual.project,
                "entity": None,
                "run_id": origin.get("id"),
                "run_name": self._run_dir.name,
                "run_group": origin.get("config"),
                "run_tags": [str(self._config[k]) for k in ("task", "agent") if k in self._config],
                "mode": None,
            },
            "dir": str(self._run_dir),
            "config": nested(self._config) | {"run": origin},
            "more": {"x_stats_pid": os.getpid()},
            "limit_s": self._patience.server,
            "resume_step": self._resume_step,
            "metrics": str(self._run_dir / "metrics.jsonl"),
        }

    def _hear(self, answer: dict[str, Any]) -> None:
        if "say" in answer:
            self.say(answer["say"])
        else:
            self._answer = answer

    def _send(self, order: str) -> None:
        assert self._link is not None
        try:
            self._link.send(order, self._patience.stall)
        except Broken as error:
            self._give_up(error)

    def _send_tables(self, at_once: bool = False) -> None:
        now = time.monotonic()
        for name, table in self._tables.items():
            if table.may_be_new and (at_once or now >= table.not_before):
                table.may_be_new = False
                with self._tolerant(f"the table of {name}"):
                    rows = json.dumps(table.rows())
                    if rows != table.sent:
                        order = {"do": "table", "name": f"tables/{name}", "step": self._step}
                        head = json.dumps({**order, "columns": COLUMNS[name].split()})
                        self._send(f'{head[:-1]}, "rows": {rows}}}')
                        table.sent = rows
                        table.not_before = now + max(PAUSE_S, len(rows) / BYTES_PER_S)

    @contextlib.contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        """Lets what cannot be put together be missing, such as of a file that cannot be read."""
        try:
            yield
        except Broken:
            raise
        except Exception as error:
            if what not in self._blamed:
                self._blamed.add(what)
                self.say(f"wandb: {what} cannot be sent ({type(error).__name__}: {error}); going on")

    def _give_up(self, error: Broken) -> NoReturn:
        """Raises Broken, with what the process has said of its end if it has."""
        link, self._link, self._is_quiet = self._link, None, True
        is_over = self._answer.get("state") == "over"
        if link and is_over:
            link.end(0.0)  # it finishes what it can
        elif link:
            link.kill()
        raise Broken(self._answer["why"]) if is_over else error


def episode_rows(run_dir: Path) -> list[list[Any]]:
    """The newest training episodes, in order; of the run's own file, so a continued run has them all."""
    file = run_dir / FOLDER / EPISODES
    if not file.exists():
        return []
    with open(file, "rb") as lines:
        start = max(0, file.stat().st_size - 256 * NEWEST)  # a line is shorter
        lines.seek(start)
        found = lines.read().split(b"\n")[1 if start else 0 : -1]
    rows = json.loads(b"[%s]" % b",".join(found[-NEWEST:]))
    return [[row.get(k) for k in COLUMNS["episodes"].split()] for row in rows]


def newest_checkpoints(run_dir: Path) -> list[list[Any]]:
    return [
        [row.get(k) for k in COLUMNS["checkpoints"].split()] for row in checkpoint_rows(run_dir)[-NEWEST:]
    ]


def sample_rows(event: Samples) -> list[list[Any]]:
    """Episodes of an evaluation, their actions and rewards shortened."""
    rows = []
    for episode in event.episodes[:SAMPLED]:
        texts = {k: shortened(episode.get(k, ())) for k in ("actions", "rewards")}
        row = {"step": event.step, **episode, **texts}
        rows.append([finite(row.get(k)) for k in COLUMNS["samples"].split()])
    return rows


def shortened(values: Any) -> str:
    """Numbers as text, four digits of each, the first few of them."""
    shown = ", ".join(in_words(x) for x in values[:SHOWN])
    return f"[{shown}]" if len(values) <= SHOWN else f"[{shown}, ...] ({len(values):,})"


def in_words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(in_words(x) for x in value)}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def video_of(event: Video) -> dict[str, Any] | None:
    """The order to log a video: the file where W&B shows its kind, else the small one."""
    order = {"do": "video", "name": event.name, "step": event.step}
    if event.file.suffix in VIDEOS:
        return {**order, "form": event.file.suffix[1:], "file": str(event.file)}
    return {**order, "form": "gif", "content": base64.b64encode(event.gif).decode()} if event.gif else None


def artifact_of(event: Saved) -> dict[str, Any]:
    """The order to log a checkpoint."""
    entry, store = event.entry, event.folder.parent.name
    names = ("step", "agent_steps", "updates", "episodes", "score", "reason", "time", "bytes")
    told = {"store": store, **{k: entry.get(k) for k in names}}
    told |= {"run_seconds": entry.get("run_s"), "save_seconds": entry.get("seconds")}
    aliases = [*(["best"] if store == "best" else []), f"step-{entry.get('step')}"]
    return {"do": "artifact", "folder": str(event.folder), "aliases": aliases, "metadata": told}


def nested(settings: Mapping[str, Value]) -> dict[str, Any]:
    """{"env.size": 64} as {"env": {"size": 64}}: W&B takes a dot for a level."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return tree


def run_record(run_dir: Path) -> dict[str, Any]:
    """run.json; {} if it cannot be read."""
    try:
        record = json.loads((run_dir / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def exit_code(run_dir: Path) -> int:
    """0 for a run that came to its end or was asked to stop; W&B shows any other one as failed."""
    return 0 if run_record(run_dir).get("exit") in ENDED_WELL else 1
