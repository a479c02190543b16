"""Training episodes as files: one npz per episode, written by a thread of its own."""

import pathlib
import queue
import threading

import numpy as np

from jaxrl.types import Step


class EpisodeFiles:
    """Collects the rows of N environments and writes each episode when it ends.

    File: `<env_steps>-<env>-<rows>.npz`, where env_steps is the `step` of its row in scores.jsonl, with
    arrays of one row per time step: the observation keys as they are, `action` (chosen after seeing the
    row; of the last row without meaning), `reward` (arrived with the row, as the learner sees it),
    `is_first`, `is_last`, `is_terminal`. An episode of which the beginning was not seen (after a resume)
    is left out. If the disk is slower than the environments, episodes are dropped and counted, never
    waited for.
    """

    def __init__(self, folder: pathlib.Path, num_envs: int, resume_step: int, waiting: int = 64):
        """Removes files beyond `resume_step` env_steps: the run does not know of them. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        for file in [*folder.glob("*.npz"), *folder.glob(".*.new")]:
            if file.suffix == ".new" or int(file.name.partition("-")[0]) > resume_step:
                file.unlink()
        self._folder = folder
        self._rows: list[list[dict[str, np.ndarray]]] = [[] for _ in range(num_envs)]
        self._queue: queue.Queue = queue.Queue(waiting)
        self.dropped = 0
        self.failure: str | None = None  # why files cannot be written, once they could not
        self._thread = threading.Thread(target=self._write, name="episodes", daemon=True)
        self._thread.start()

    def add(self, step: Step, action: np.ndarray, env_steps: int) -> None:
        """One row of every environment, and the clock when it was received."""
        for n, rows in enumerate(self._rows):
            if step.is_first[n]:
                rows.clear()
            elif not rows:
                continue
            row = {key: value[n] for key, value in step.obs.items()}
            flags = {k: getattr(step, k)[n] for k in ("reward", "is_first", "is_last", "is_terminal")}
            rows.append(row | {"action": action[n]} | flags)
            if step.is_last[n]:
                self._finish(f"{env_steps:012}-{n}-{len(rows)}.npz", list(rows))
                rows.clear()

    def _finish(self, name: str, rows: list[dict[str, np.ndarray]]) -> None:
        try:
            self._queue.put_nowait((name, rows))
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            name, rows = item
            arrays = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
            fresh = self._folder / f".{name}.new"
            try:
                with open(fresh, "wb") as file:
                    np.savez_compressed(file, **arrays)
                fresh.replace(self._folder / name)
            except OSError as error:
                self.dropped += 1
                self.failure = error.strerror or str(error)

    def close(self) -> None:
        """Writes what waits. A second call does nothing."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
