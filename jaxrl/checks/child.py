"""Asks in a process of its own what may end it, or never answer: devices, EnvPool, OpenGL."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from typing import Any

from jaxrl import runtime

LIMIT_S = 60.0  # of a child; importing jax from a slow disk takes a good part of it
NOISE = re.compile(r"^\s*(@|\*\*\*|File |Traceback|\^)|^\s*$")  # of a stack, in Python or C++
FATAL = re.compile(r"^F\d{4} [^\]]*\] ")  # how XLA's and EnvPool's last words begin


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the stages of a child have said."""

    stages: dict[str, dict[str, Any]]  # by name; what has raised has the field "error"
    failure: str  # how the child ended before it had said everything, in one line; "" if it did not

    def error(self, stage: str) -> str:
        """What went wrong in a stage, or before it was reached; "" if nothing did."""
        if stage in self.stages:
            return self.stages[stage].get("error", "")
        return self.failure or "it said nothing"


def ask(*words: str, limit_s: float = LIMIT_S, **variables: str | None) -> Answer:
    """Runs a probe of `inside` in a child.

    Args:
      words: name of the probe, and its arguments.
      variables: of its environment; None: not set.
    """
    quiet = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_CPP_MIN_LOG_LEVEL": "2"}
    child = subprocess.Popen(
        [sys.executable, "-m", "jaxrl.checks.inside", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=runtime.environment({**quiet, **variables}),
        start_new_session=True,
    )
    late = False
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)  # what it has started, too
        out, err = b"", b""
        with contextlib.suppress(subprocess.TimeoutExpired):  # where the kernel itself waits for a driver
            out, err = child.communicate(timeout=2)
    stages = told(out)
    if late:
        return Answer(stages, f"no answer within {limit_s:g} s")
    if child.returncode or "end" not in stages:
        return Answer(stages, ending(child.returncode, err.decode(errors="replace")))
    return Answer(stages, "")


def told(out: bytes) -> dict[str, dict[str, Any]]:
    """The lines of a child that are ours; libraries write what they like between them."""
    stages = {}
    for line in out.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            said = json.loads(line)
            if isinstance(said, dict) and isinstance(said.get("stage"), str):
                stages[said.pop("stage")] = said
    return stages


def ending(code: int, err: str) -> str:
    """How a child ended, with its last words."""
    how = f"ended with code {code}"
    if code < 0:
        with contextlib.suppress(ValueError):
            how = f"was ended by {signal.Signals(-code).name}"
    lines = [line for line in err.splitlines() if not NOISE.match(line)]
    fatal = [FATAL.sub("", line) for line in lines if FATAL.match(line)]
    last = (fatal[:1] or lines[-1:] or ["it said nothing"])[0].strip()
    return f"the process {how}: {last[:300]}"
