"""episodes/eval-<step>-<number>.json: sampled episodes of evaluations, one file each."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import ClassVar

from jaxrl.sinks.row import Event, Samples, Sink

FOLDER = "episodes"


class SampleFiles(Sink):
    """Writes what an evaluation has sampled; nobody ever sees half a file."""

    name = "samples"
    takes: ClassVar[tuple[type, ...]] = (Samples,)

    def __init__(self, run_dir: Path, resume_step: int | None) -> None:
        """Removes the samples of evaluations beyond `resume_step`, which the run does not know of."""
        self._folder = run_dir / FOLDER
        for file in self._folder.glob("eval-*.json"):
            step = re.fullmatch(r"eval-(\d{1,15})-\d+\.json", file.name)
            if step and int(step[1]) > (-1 if resume_step is None else resume_step):
                file.unlink()

    def take(self, event: Event) -> None:
        assert isinstance(event, Samples)
        self._folder.mkdir(exist_ok=True)
        for number, episode in enumerate(event.episodes):
            file = self._folder / f"eval-{event.step:012}-{number}.json"
            fresh = file.with_name(f".{file.name}.new")
            fresh.write_text(json.dumps({"step": event.step, **episode}) + "\n", encoding="utf-8")
            os.replace(fresh, file)
