"""A process of its own that is talked to in lines of JSON, and that can be given up at any time."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Broken(RuntimeError):
    """The process has ended, or does not read what it is sent. Its text says which."""


class Link:
    """Starts a script in a session of its own, so that no signal meant for this process reaches it.

    What it writes to its standard output arrives in `hear`, within calls of this class; nothing here waits
    longer than it is told to.

    Args:
      script: a Python file; its folder is not searched for modules.
      environment: of the process, whole.
      hear: takes each JSON object that the script writes, one a line.
    """

    def __init__(
        self, script: Path, environment: Mapping[str, str], hear: Callable[[dict[str, Any]], None]
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin and self._process.stdout
        self._to, self._from = self._process.stdin, self._process.stdout
        self._hear, self._torn, self._is_open = hear, b"", True
        for pipe in (self._to, self._from):
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: str, seconds: float) -> None:
        """Raises Broken if the script has not taken the message by then: it is of no use from here on.

        Args:
          message: one line without its newline.
        """
        rest = memoryview(message.encode() + b"\n")
        end = time.monotonic() + seconds
        while rest:
            try:
                rest = rest[os.write(self._to.fileno(), rest) :]
            except BlockingIOError:
                if (left := end - time.monotonic()) <= 0:
                    raise Broken(f"it has not answered for {seconds:.0f} s") from None
                self._wait(min(left, 1.0), writing=True)
            except OSError:
                self.listen()  # it may have said why
                raise Broken(self.fate()) from None

    def listen(self, seconds: float = 0.0, until: Callable[[], bool] = lambda: False) -> bool:
        """Passes on what the script has written, waiting so long for `until` to hold, or for its end.

        Returns:
          Whether the script still runs, as far as its pipe can tell.
        """
        end = time.monotonic() + seconds
        self._read()
        while self._is_open and not until() and (left := end - time.monotonic()) > 0:
            self._wait(left)
        return self._is_open

    def end(self, seconds: float) -> bool:
        """Tells the script that nothing more will come. True if it has ended by then."""
        self._to.close()
        stop = time.monotonic() + seconds
        self.listen(seconds)
        try:
            self._process.wait(max(0.0, stop - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        self._from.close()
        return True

    def kill(self) -> None:
        self._process.kill()
        self.end(1.0)

    def check(self) -> None:
        """Raises Broken if the script has ended."""
        if not self.listen():
            raise Broken(self.fate())

    def fate(self) -> str:
        """How a script has ended that was not asked to."""
        try:
            code = self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process has closed its ears"
        ending = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process has ended with {ending}"

    def _wait(self, seconds: float, writing: bool = False) -> None:
        """Until there is something to read or, with `writing`, room to write."""
        waiting = select.poll()
        if self._is_open:
            waiting.register(self._from.fileno(), select.POLLIN)
        if writing:
            waiting.register(self._to.fileno(), select.POLLOUT)
        waiting.poll(1000 * seconds)
        self._read()

    def _read(self) -> None:
        while self._is_open:
            try:
                block = os.read(self._from.fileno(), 65_536)
            except BlockingIOError:
                return
            self._is_open = bool(block)
            *lines, self._torn = (self._torn + block).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
