"""checkpoint_log.jsonl: one line per checkpoint that was made, removed or found damaged."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from jaxrl.stores.shelf import Checkpoint


class Log:
    """The file. Lines of a process that died while it wrote are passed over, and go with the next one."""

    def __init__(self, path: pathlib.Path):
        self._path = path

    def lines(self) -> list[dict[str, Any]]:
        """All complete lines."""
        return list(read_lines(self._path))

    def saved(self) -> set[str]:
        """`store/name` of every checkpoint that should be there."""
        there: set[str] = set()
        for line in self.lines():
            name = f"{line.get('store')}/{line.get('name')}"
            (there.add if line.get("event") == "saved" else there.discard)(name)
        return there

    def add(self, line: dict[str, Any]) -> None:
        """Appends a line and brings it to the disk; a torn last line of a process that died goes."""
        whole = (json.dumps(line, allow_nan=False) + "\n").encode()
        with open(self._path, "a+b") as file:
            end = file.seek(0, os.SEEK_END)
            if end:
                file.seek(end - 1)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with open(path, "rb") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue  # torn: its process died while it wrote
            if isinstance(row, dict):
                yield row


def entry(made: Checkpoint, seconds: float | None) -> dict[str, Any]:
    """The line of the log about a new checkpoint; `seconds` None: its process died before it could log it."""
    facts, counters = made.manifest, made.manifest["counters"]
    return {
        "event": "saved",
        **place(made.folder),
        "step": made.step,
        "agent_steps": facts["agent_steps"],
        "updates": counters["updates"],
        "episodes": counters["episodes"],
        "time": facts["time"],
        "run_s": round(counters["wall_s"], 3),
        "bytes": sum(file["bytes"] for file in facts["files"].values()),
        "seconds": seconds,
        "reason": facts["reason"],
        "score": facts["score"],
    }


def place(folder: pathlib.Path) -> dict[str, str]:
    return {"store": folder.parent.name, "name": folder.name}
