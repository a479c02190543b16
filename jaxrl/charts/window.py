"""A window that shows a PNG file and follows it: python -m jaxrl.charts.window FILE

A process of its own, so that nothing of it can disturb a run. It ends when it is closed, or when the process
ends that has started it. Tk reads PNGs itself; nothing else is needed.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

PERIOD = 500  # milliseconds between looks at the file
CHECK = "--check"
PAPER = "#ffffff"


def obstacle(seconds: float = 20.0) -> str:
    """Why no window can be opened here; "" if one can. Tries it, in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "jaxrl.charts.window", CHECK],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: it cannot be tried"
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else lines[-1][:200] if lines else f"exit code {done.returncode}"


def open_on(path: pathlib.Path) -> subprocess.Popen[bytes]:
    """Opens a window on a file, which need not be there yet. Deaf to the terminal's Ctrl-C."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxrl.charts.window", str(path), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(argv: Sequence[str]) -> int:
    """Exit code: 0 once the window is closed, 1 if there can be none, 2 without a file."""
    if not argv:
        sys.stderr.write("jaxrl: name a PNG file\n")
        return 2
    try:
        import tkinter
    except ImportError:
        sys.stderr.write("Python's tkinter is not installed here (apt-get install python3-tk)\n")
        return 1
    try:
        root = tkinter.Tk(className="jaxrl")
    except tkinter.TclError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if argv[0] == CHECK:
        root.destroy()
        return 0
    parent = int(argv[1]) if len(argv) > 1 and argv[1].isdigit() else os.getppid()
    file = pathlib.Path(argv[0])
    root.title(f"{file.parent.parent.name or file.name} - jaxrl")
    Follower(root, file, parent).look()
    root.mainloop()
    return 0


class Follower:
    """Looks at the file again and again.

    Args:
      root: the window.
      file: PNG, replaced as a whole.
      parent: process that the window ends with.
    """

    def __init__(self, root: Any, file: pathlib.Path, parent: int):
        import tkinter

        self._root, self._file, self._parent = root, file, parent
        self._label = tkinter.Label(root, text=f"waiting for {file.name} ...", background=PAPER, bd=0)
        self._label.pack(fill="both", expand=True, ipadx=60, ipady=30)
        self._seen: tuple[int, int] | None = None

    def look(self) -> None:
        """Shows the file if it is another one, and comes back later."""
        if os.getppid() != self._parent:
            return self._root.destroy()
        with contextlib.suppress(OSError):
            now = self._file.stat()
            if (now.st_mtime_ns, now.st_ino) != self._seen:
                self._seen = (now.st_mtime_ns, now.st_ino)
                self._show()
        self._root.after(PERIOD, self.look)

    def _show(self) -> None:
        import tkinter

        with contextlib.suppress(tkinter.TclError):  # no picture: the one before stays
            self._image = tkinter.PhotoImage(file=str(self._file), master=self._root)
            self._label.configure(image=self._image, text="")
            self._label.pack_configure(ipadx=0, ipady=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
