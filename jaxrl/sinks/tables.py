"""tables/: a line per training episode, a line per checkpoint, from the run's beginning on.

tables/episodes.jsonl is a file of record beside scores.jsonl. tables/checkpoints.jsonl is made anew from
checkpoint_log.jsonl, so it can never tell another story.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, ClassVar

from jaxrl.sinks.jsonl import JsonlFile, strict_line
from jaxrl.sinks.row import Event, Saved, ScoreRow, Sink

FOLDER, EPISODES, CHECKPOINTS = "tables", "episodes.jsonl", "checkpoints.jsonl"


def encode_episode(row: ScoreRow) -> str | None:
    """One line without its newline; None for episodes of evaluations."""
    if row.kind != "episode":
        return None
    return strict_line(
        {
            "episode": row.number,
            "env_steps": row.step,
            "score": row.score,
            "length": row.length,
            **({} if row.success is None else {"success": row.success}),
            "seconds": round(row.wall_s, 3),
            "env": row.env,
        }
    )


def episodes_file(run_dir: Path) -> JsonlFile:
    return JsonlFile(run_dir / FOLDER / EPISODES, ScoreRow, encode_episode, name="episodes")


def checkpoint_rows(run_dir: Path) -> list[dict[str, Any]]:
    """Every checkpoint that was ever made, in order, and whether it is still there."""
    log, rows = run_dir / "checkpoint_log.jsonl", []
    if not log.exists():
        return rows
    for line in log.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # torn: its process died while it wrote
        file = f"{entry.get('store')}/{entry.get('name')}"
        if entry.get("event") == "saved":
            rows.append({"episode": entry.get("episodes"), "env_steps": entry.get("step")})
            rows[-1] |= {k: entry.get(k) for k in ("updates", "score", "reason", "time", "bytes")}
            rows[-1] |= {"run_seconds": entry.get("run_s"), "save_seconds": entry.get("seconds")}
            rows[-1] |= {"file": f"checkpoints/{file}", "there": True}
        else:  # removed, quarantined, undone: of whichever bore this name last
            for row in reversed(rows):
                if row["file"] == f"checkpoints/{file}":
                    row["there"] = False
                    break
    return rows


class CheckpointTable(Sink):
    """tables/checkpoints.jsonl, whole again after each checkpoint."""

    name = "checkpoint table"
    takes: ClassVar[tuple[type, ...]] = (Saved,)

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._write()

    def take(self, event: Event) -> None:
        del event
        self._write()

    def close(self) -> None:
        self._write()

    def _write(self) -> None:
        file = self._run_dir / FOLDER / CHECKPOINTS
        if rows := checkpoint_rows(self._run_dir):
            fresh = file.with_name(file.name + ".new")
            fresh.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            os.replace(fresh, file)
