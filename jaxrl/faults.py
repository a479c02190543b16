"""Faults on purpose: what the setting debug.fault asks for happens at named places of a run. For tests.

    --debug.fault=kill@learn:3                       the third learning kills the process
    --debug.fault=raise@tensorboard:2+,hang=5@terminal

KIND@PLACE[:NUMBER[+]], separated by commas. NUMBER is the visit of the place, counted since the process
began, at which it happens, 1 by default; with a + it happens at every visit from there on.
"""

import collections
import errno
import os
import re
import signal
import threading
import time
from typing import NamedTuple

from jaxrl.config import ConfigError, nearest, show

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}  # sent to this process
KINDS = (*SIGNALS, "raise", "full", "hang", "exit", "nan")
VALUES = ("reward", "obs")  # what arrives from the training environments; only nan is known there
PLACES = {
    "start": "the run directory is made or opened",
    "compile": "programs are traced and compiled",
    "act": "a step of the training environments",
    "learn": "updates are begun",
    "flush": "metrics are fetched for a row",
    "eval": "a step of an evaluation",
    "save": "a checkpoint is begun",
    "commit": "its arrays are written, in the thread that keeps checkpoints",
    "manifest": "it is a checkpoint now, but not in the log yet",
    "metrics": "metrics.jsonl gets a row",
    "scores": "scores.jsonl gets an episode",
    "tensorboard": "TensorBoard's file gets a row",
    "terminal": "the terminal gets a row, an episode or words",
    "episodes": "tables/episodes.jsonl gets an episode",
    "plot": "plots/live.png gets a row or an episode",
    "wandb": "Weights & Biases gets anything",
    "reward": "rewards arrive",
    "obs": "observations arrive",
}
HANG_S = 60.0


class Fault(NamedTuple):
    kind: str
    place: str
    number: int  # the visit at which it happens
    onward: bool  # and at every later one
    seconds: float  # that a hang takes

    def is_due(self, visit: int) -> bool:
        return visit == self.number or (self.onward and visit > self.number)


class Faults:
    """The faults of one process. Without any, a place costs one attribute test."""

    def __init__(self, spec: str = ""):
        """Raises ConfigError if `spec` cannot be understood."""
        self._faults = tuple(parse(item) for item in spec.split(",")) if spec else ()
        self.armed = bool(self._faults)
        self._visits: collections.Counter[str] = collections.Counter()
        self._lock = threading.Lock()  # places are visited by several threads

    def at(self, place: str) -> None:
        """Counts a visit of a place, and does what is due there."""
        if self.armed:
            for fault in self._due(place):
                happen(fault)

    def bad(self, place: str) -> bool:
        """Counts a visit of a place where values arrive; True if they are to become NaN."""
        return self.armed and bool(self._due(place))

    def _due(self, place: str) -> list[Fault]:
        assert place in PLACES, place
        with self._lock:
            self._visits[place] += 1
            visit = self._visits[place]
        return [fault for fault in self._faults if fault.place == place and fault.is_due(visit)]


OFF = Faults()


def happen(fault: Fault) -> None:
    """Does it, in the thread that asks."""
    words = f"injected by debug.fault at {fault.place}"
    if fault.kind in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault.kind])
    elif fault.kind == "raise":
        raise RuntimeError(words)
    elif fault.kind == "full":
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, {words}")
    elif fault.kind == "hang":
        time.sleep(fault.seconds)
    elif fault.kind == "exit":
        raise SystemExit(words)


def parse(text: str) -> Fault:
    """One KIND@PLACE[:NUMBER[+]]. Raises ConfigError."""

    def refuse(why: str) -> ConfigError:
        return ConfigError(f"debug.fault={show(text)}: {why}; for example debug.fault=kill@learn:3")

    head, _, place = text.strip().partition("@")
    place, colon, number = place.partition(":")
    kind, equals, seconds = head.partition("=")
    if not place:
        raise refuse("must be KIND@PLACE[:NUMBER], several separated by commas")
    if kind not in KINDS:
        raise refuse(f"unknown kind {show(kind)}, {nearest(kind, KINDS, otherwise=one_of(KINDS))}")
    if place not in PLACES:
        raise refuse(f"unknown place {show(place)}, {nearest(place, PLACES, otherwise=one_of(PLACES))}")
    if (kind == "nan") != (place in VALUES):
        raise refuse(f"nan is for the places {' and '.join(VALUES)}, and nothing else is")
    if colon and not re.fullmatch(r"[1-9]\d{0,8}\+?", number):
        raise refuse(f"{show(number)} must be the number of a visit, 1 or more")
    if equals and (kind != "hang" or not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", seconds)):
        raise refuse("only hang=SECONDS has a value")
    visit = int(number.rstrip("+")) if colon else 1
    return Fault(kind, place, visit, number.endswith("+"), float(seconds) if equals else HANG_S)


def one_of(names: tuple[str, ...] | dict[str, str]) -> str:
    return "one of " + ", ".join(names)
