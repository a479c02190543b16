"""The process that talks to Weights & Biases: `WandB` starts it and sends it what is to be logged.

The training's process never imports wandb, which would replace sys.exit and sys.excepthook there, set an
environment variable and start threads. What hangs or breaks here is this process alone. It also outlives the
training, to finish what is left.

Orders come in lines of JSON: first what `begin` wants, then {"do": a method of Uplink, ...}. Answers are
{"state": ready, disabled, missing, failed, over or finished, ...} and {"say": a line for the human}. Nothing
of jaxrl is imported, so that it starts at once.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import fcntl
import io
import itertools
import json
import math
import os
import queue
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, Any

IN_A_ROW = 3  # failures that end it
LINGER_S = 300.0  # that it may take to finish, once the training has ended; half of it to copy checkpoints
WAITING = 4  # checkpoints that wait to be copied, at most: the newest
OFFLINE_BYTES = 10**9  # copies of checkpoints that are kept where no upload removes them
ROOM = 10  # times the size of a checkpoint that the disk must have free for a copy
OLD_ROWS = 10_000  # rows from before that an offline run is given at most
STEP = "env_steps"  # the axis of every chart
KEYS = re.compile(r"\b(local-)?[0-9a-f]{40}\b|\bwandb_v\d\w+")  # what keys to W&B look like
# Settings of wandb: no code, packages, words, repository or machine is looked at; rows and config tell it.
QUIET = {"console": "off", "silent": True, "disable_git": True, "disable_code": True, "save_code": False}
QUIET |= {"x_save_requirements": False, "x_disable_stats": True, "label_disable": True}
QUIET |= {"program": "jaxrl.train"}


class Over(Exception):
    """Too many failures in a row."""


class Courier:
    """Delivers, one after the other in a thread of its own, what would keep orders waiting for minutes."""

    def __init__(self, deliver: Callable[[dict[str, Any]], None]) -> None:
        self._waiting: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(deliver,), daemon=True)
        self._thread.start()

    def add(self, order: dict[str, Any]) -> bool:
        """False if WAITING others were before it, the oldest of which is left out."""
        is_full = self._waiting.qsize() >= WAITING
        if is_full:
            with contextlib.suppress(queue.Empty):
                self._waiting.get_nowait()
        self._waiting.put(order)
        return not is_full

    def end(self, seconds: float) -> bool:
        """True if everything has been delivered by then. Nothing may be added any more."""
        self._waiting.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self, deliver: Callable[[dict[str, Any]], None]) -> None:
        for order in iter(self._waiting.get, None):
            deliver(order)


class Uplink:
    """One run of W&B.

    Args:
      wandb: the package.
      run: what its `init` has returned.
      tell: sends an answer.
      copies: WANDB_DATA_DIR, where wandb copies checkpoints to.
      secret: the key, to be kept out of every answer; "" if it is not known.
    """

    def __init__(
        self,
        wandb: ModuleType,
        run: Any,
        tell: Callable[[Mapping[str, Any]], None],
        copies: Path,
        secret: str = "",
    ) -> None:
        self._wandb, self._run, self._tell, self._secret = wandb, run, tell, secret
        self._copies, self._kept = copies, bytes_in(copies / "artifacts" / "staging")  # of earlier starts
        self._courier = Courier(self._deliver)
        self._failures: collections.Counter[str] = collections.Counter()
        self._said: set[str] = set()
        self._in_a_row = 0
        self._known = -math.inf  # agent_steps of the newest row that the run has already

    def obey(self, order: dict[str, Any]) -> None:
        """Does what an order says, or has it done where that takes long. Raises Over."""
        what = order.pop("do")
        if what == "artifact":
            if not self._courier.add(order):
                self._once("checkpoints come faster than they can be copied; some are left out")
            return
        with self._guarded({"row": "metrics"}.get(what, f"a {what}")):
            getattr(self, what)(**order)

    def axis(self) -> None:
        """Every chart is over env_steps: W&B's own steps count calls, so that none is ever dropped."""
        with self._guarded("the axis of the charts"):
            self._run.define_metric(STEP)
            self._run.define_metric("*", step_metric=STEP)

    def skip_known(self) -> None:
        """Rows that the server has are not sent twice, when a run makes them again after it was killed."""
        with contextlib.suppress(Exception):
            self._known = float(self._run.summary["agent_steps"])

    def row(self, row: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl. What was not finite is left out, and counted in `nan_keys`."""
        if row["agent_steps"] <= self._known:
            return
        values = {k: x for k, x in row.items() if k != "step" and isinstance(x, int | float)}
        if bad := row.get("nan_keys"):
            values["nan_keys"] = len(bad)
        self._run.log({STEP: row["step"], **values})

    def earlier(self, file: str, last_step: int) -> None:
        """The rows of a metrics.jsonl up to a step, at most OLD_ROWS of them, evenly spread."""
        count = sum(1 for _ in rows_of(file, last_step))
        for row in itertools.islice(rows_of(file, last_step), 0, None, math.ceil(count / OLD_ROWS) or 1):
            with self._guarded("metrics"):
                self.row(row)

    def table(self, name: str, step: int, columns: list[str], rows: list[list[Any]]) -> None:
        made = self._wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
        self._run.log({STEP: step, name: made})

    def video(self, name: str, step: int, form: str, file: str = "", content: str = "") -> None:
        """Of a file, or of `content` in base64."""
        source = file or io.BytesIO(base64.b64decode(content))
        self._run.log({STEP: step, name: self._wandb.Video(source, format=form)})

    def artifact(self, folder: str, aliases: list[str], metadata: dict[str, Any]) -> None:
        """A checkpoint as a version of the run's model; none if it is removed before it is copied."""
        if is_whole(folder) and not self._has_room(metadata["bytes"] or 0):
            return
        made = self._wandb.Artifact(f"model-{self._run.id}", type="model", metadata=metadata)
        try:
            made.add_dir(folder, skip_cache=True)
        except (OSError, ValueError):
            if is_whole(folder):
                raise
        if is_whole(folder):
            self._run.log_artifact(made, aliases=aliases)
        else:
            name = "/".join(Path(folder).parts[-3:])
            self._once(f"{name} was removed before it could be sent", "removed")

    def finish(self, code: int) -> None:
        """Brings everything to the server or the disk. Raises Over."""
        try:
            self._run.finish(exit_code=code)
        except BaseException as error:
            raise Over(reason(error, self._secret)) from error

    def account(self) -> None:
        """Waits for checkpoints on their way, then says what was lost, where that has not been said."""
        if not self._courier.end(LINGER_S / 2):
            self._say("the last checkpoints are left out: copying them takes too long")
        counts = [f"{count} x {kind}" for kind, count in self._failures.copy().items() if count > 1]
        if counts:
            self._say(f"not sent: {', '.join(counts)}")

    @contextlib.contextmanager
    def _guarded(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Over:
            raise
        except BaseException as error:  # SystemExit too: libraries raise it
            self._in_a_row += 1
            if self._in_a_row >= IN_A_ROW:
                why = reason(error, self._secret)
                raise Over(f"{IN_A_ROW} calls in a row have failed, {kind} with {why}") from error
            self._failed(kind, error)
        else:
            self._in_a_row = 0

    def _deliver(self, order: dict[str, Any]) -> None:
        """In the courier's thread, beside other calls of wandb: those send through one event loop.

        Failures are counted, but end nothing: rows may go on arriving where checkpoints do not.
        """
        try:
            self.artifact(**order)
        except BaseException as error:
            self._failed("a checkpoint", error)

    def _has_room(self, size: int) -> bool:
        """Whether so many bytes may be copied; says why not. Offline, copies are never removed."""
        self._copies.mkdir(parents=True, exist_ok=True)
        if self._run.offline and self._kept + size > OFFLINE_BYTES:
            why = f"offline, copies of checkpoints may take {OFFLINE_BYTES / 1e9:g} GB in all"
        elif shutil.disk_usage(self._copies).free < ROOM * size:
            why = f"a checkpoint is sent only where the disk has {ROOM} times its size free"
        else:
            self._kept += size
            return True
        self._once(f"{why}; others stay in checkpoints/ only")
        return False

    def _failed(self, kind: str, error: BaseException) -> None:
        self._failures[kind] += 1
        self._once(f"{kind} could not be sent ({reason(error, self._secret)}); going on", kind)

    def _once(self, text: str, kind: str = "") -> None:
        """Says something, if nothing of its kind was said before."""
        if (kind or text) not in self._said:
            self._said.add(kind or text)
            self._say(text)

    def _say(self, text: str) -> None:
        self._tell({"say": f"wandb: {text}"})


def rows_of(file: str, last_step: int) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(OSError), open(file, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if row["step"] > last_step:
                    return
                yield row


def bytes_in(folder: Path) -> int:
    """Of its files; 0 where one of them vanishes meanwhile."""
    with contextlib.suppress(OSError):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return 0


def is_whole(folder: str) -> bool:
    """Whether it is a checkpoint still: of one that is removed, the manifest goes first."""
    return Path(folder, "manifest.json").exists()


def reason(error: BaseException, secret: str = "") -> str:
    """An error in one line, without keys."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    text = text.replace(secret, "***") if secret else text
    return KEYS.sub("***", text)[:300]


def settings_of(wandb: ModuleType, order: dict[str, Any]) -> tuple[Any, Any]:
    """Settings of wandb for this run, and those that the user's environment and files add up to with them."""
    names = getattr(wandb.Settings, "model_fields", QUIET)
    quiet = {k: x for k, x in {**QUIET, **order["more"]}.items() if k in names}
    settings = wandb.Settings(**quiet, init_timeout=order["limit_s"])
    return settings, wandb.setup(settings).settings


def begin(wandb: ModuleType, order: dict[str, Any], settings: Any, theirs: Any) -> Any:
    """Starts the run of W&B, or goes on with it.

    Args:
      order: "given" are settings that hold, "otherwise" those that hold unless `theirs` names others; "more"
        may be unknown to wandb; "config" is the run's, "limit_s" how long to wait for the server.
    """
    usual = order["otherwise"]
    named = {k: getattr(theirs, k, None) for k in usual}
    wanted = usual | {k: x for k, x in named.items() if x is not None} | order["given"]
    return wandb.init(
        dir=order["dir"],
        project=wanted["project"],
        entity=wanted["entity"],
        id=wanted["run_id"],
        name=wanted["run_name"],
        group=wanted["run_group"],
        tags=wanted["run_tags"],
        mode=wanted["mode"],
        config=order["config"],
        resume="allow",
        settings=settings,
    )


def alone(folder: Path, seconds: float) -> IO[bytes]:
    """Waits so long for the process of an earlier start, which may be finishing still: both would write rows.

    Returns:
      What keeps the next one waiting, until it is closed.
    """
    folder.mkdir(exist_ok=True)
    lock, end = open(folder / "jaxrl.lock", "wb"), time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.1)
    return lock


def state_of(run: Any) -> dict[str, Any]:
    """What to answer about a run that has begun."""
    if run.disabled:
        return {"state": "disabled"}
    offline = bool(run.offline)
    return {
        "state": "ready",
        "folder": str(Path(run.dir).parent),
        "offline": offline,
        "url": "" if offline else str(run.url),
    }


def serve(orders: Iterator[dict[str, Any]], tell: Callable[[Mapping[str, Any]], None]) -> None:
    """Everything, up to the end of the orders. That no order to finish was among them tells of a crash."""
    first, secret = next(orders, None), ""
    if first is None:
        return
    try:
        import wandb

        if not hasattr(wandb, "init"):  # a folder of that name, such as an older run has left
            raise ImportError("there is no package named wandb")
    except ImportError as error:
        return tell({"state": "missing", "why": reason(error)})
    except BaseException as error:
        return tell({"state": "failed", "why": reason(error)})
    try:
        others = alone(Path(first["dir"], "wandb"), first["limit_s"] / 2)
        settings, theirs = settings_of(wandb, first)
        secret = getattr(theirs, "api_key", None) or ""
        run = begin(wandb, first, settings, theirs)
        state = state_of(run)
    except BaseException as error:  # wandb raises more kinds than it documents, SystemExit among them
        return tell({"state": "failed", "why": reason(error, secret)})
    tell(state)
    if state["state"] == "disabled":
        return
    uplink, code = Uplink(wandb, run, tell, Path(first["copies"]), secret), 1
    try:
        uplink.axis()
        if state["offline"] and first["resume_step"] is not None:
            uplink.earlier(first["metrics"], first["resume_step"])
        elif run.resumed:
            uplink.skip_known()
        for order in orders:
            if order["do"] == "finish":
                code = order["code"]
                break
            uplink.obey(order)
        uplink.account()
        uplink.finish(code)
        tell({"state": "finished"})
    except Over as error:
        tell({"state": "over", "why": str(error)})
        with contextlib.suppress(BaseException):
            run.finish(exit_code=1)
    others.close()


def main() -> None:
    """Takes the pipes for itself, so that nothing that wandb prints or starts can touch them."""
    training = os.getppid()
    orders, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    for number in range(3):
        os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training may want to save first: its end is what counts
    os.nice(5)

    def tell(answer: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            os.write(answers, json.dumps(answer).encode() + b"\n")

    def watch() -> None:
        while os.getppid() == training:
            time.sleep(1)
        time.sleep(LINGER_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    serve(map(json.loads, orders), tell)


if __name__ == "__main__":
    sys.exit(main())
