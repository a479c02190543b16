"""A trace of some updates, for XProf and TensorBoard's profile tab."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax


class Profiler:
    """Traces the process from update A to update B, counted from the run's beginning.

    Costs two comparisons where updates are begun. The end of the trace waits for the device once.

    Args:
      folder: gets plugins/profile/<time>/, which TensorBoard finds anywhere below its --logdir.
      spec: "A:B"; "" = never.
      say: takes a line.
    """

    def __init__(self, folder: pathlib.Path, spec: str, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._first, self._last = span(spec) if spec else (-1, -1)
        self._traced_from: int | None = None
        self._made = 0  # updates, as far as this has heard
        self._over = not spec

    def begin(self, done: int, due: int) -> None:
        """`due` updates are about to be enqueued, after `done` of the run."""
        self._made = done + due
        if self._over or self._traced_from is not None or done + due <= self._first:
            return
        if done >= self._last:
            self._over = True
            self._say(
                f"profile={self._first}:{self._last}: nothing to trace, {done:,} updates are done already"
            )
            return
        try:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # frames of Python slow the loop that is to be seen
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
        except Exception as error:  # whatever it is, the run goes on
            self._over = True
            return self._say(f"no profile: {type(error).__name__}: {error}")
        self._traced_from = done

    def end(self, done: int, arrays: Any) -> None:
        """They were enqueued, `done` of the run by now; `arrays` are results of the last one."""
        if self._traced_from is not None and done >= self._last:
            jax.block_until_ready(arrays)
            self._stop(done)

    def close(self) -> None:
        """Ends a trace that has not come to its last update. A second call does nothing."""
        if self._traced_from is not None:
            self._stop(self._made)
        elif not self._over:
            self._over, made = True, f"the run made {self._made:,} updates"
            self._say(f"profile={self._first}:{self._last}: nothing was traced, {made}")

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()  # of a run that fails, the trace is the more wanted

    def _stop(self, done: int) -> None:
        first, self._traced_from, self._over = self._traced_from, None, True
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # whatever it is, the run goes on
            return self._say(f"no profile: {type(error).__name__}: {error}")
        self._say(
            f"profile of updates {first:,} to {done:,}: tensorboard --logdir={self._folder}, with xprof"
        )


def span(spec: str) -> tuple[int, int]:
    """(A, B) of "A:B"."""
    first, last = spec.split(":")
    return int(first), int(last)
