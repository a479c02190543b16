"""--benchmark_at_end: how fast the updates of a run that is done are, measured by a process of its own.

The benchmarks lie beside the package in a checkout; an installed package has none. The run is done, so
whatever goes wrong here is one line and no more. Imports no jax.
"""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from jaxrl import runtime

NEEDED = ("benchmarks/__init__.py", "benchmarks/run.py")
FOLDER = "benchmarks"  # of a run directory, for the records
LIMIT_S = 3_600.0
PATIENCE_S = 15.0  # for the child to end those that it has started


def after(run: pathlib.Path, say: Callable[[str], None], root: pathlib.Path | None = None) -> None:
    """Measures a run that is done, and says in one line what came of it. Raises nothing.

    Args:
      run: its directory, which nobody works in any more.
      root: folder of the benchmarks; None: beside this package.
    """
    root = root or pathlib.Path(__file__).resolve().parents[1]
    words = ["-m", "benchmarks.run", f"--run={run}", f"--out={run / FOLDER}"]
    command = shlex.join(["python", *words])
    if not all((root / name).is_file() for name in NEEDED):
        say(f"benchmark_at_end: benchmarks/ is in checkouts only, nothing is measured; in one: {command}")
        return
    try:
        with stoppable():
            say("benchmark_at_end: measuring, some minutes ...")
            runtime.give_back_devices()
            before = set((run / FOLDER).glob("*.json"))
            failure = measure(words, root)
            made = len(set((run / FOLDER).glob("*.json")) - before)
        outcome = f"{made} record{'s' * (made != 1)} in {run / FOLDER}"
        say(f"benchmark_at_end: {failure or outcome}")
    except KeyboardInterrupt:
        say(f"benchmark_at_end: interrupted; the run is done; later: {command}")
    except Exception as error:  # whatever it is, the run is done
        say(f"benchmark_at_end: failed ({type(error).__name__}: {error}); later: {command}")


def measure(words: list[str], root: pathlib.Path) -> str:
    """Runs the benchmarks by these words of the interpreter. Returns why they failed, "" if they did not."""
    path = os.pathsep.join(filter(None, (str(root), runtime.variable("PYTHONPATH"))))
    child = subprocess.Popen(
        [sys.executable, *words],
        cwd=root,  # whose modules come first, whatever lies where the run was started
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=runtime.environment({"PYTHONPATH": path}),
        start_new_session=True,
    )
    try:
        _, said = child.communicate(timeout=LIMIT_S)
    except BaseException as error:
        end(child)
        if isinstance(error, subprocess.TimeoutExpired):
            return f"did not end within {LIMIT_S:g} s"
        raise
    if not child.returncode:
        return ""
    last = next(reversed(said.strip().splitlines()), "it said nothing")
    return f"failed (exit code {child.returncode}): {last[:300]}"


def end(child: subprocess.Popen[str]) -> None:
    """Ends the child, which then ends its own; at last by force."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.communicate(timeout=PATIENCE_S)
            return


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, so that nothing that was started is left behind."""
    if not runtime.on_main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
