"""The service by which jax connects processes, as a process of its own: python -m jaxrl.hosts.service.

Inside of process 0, as jax has it, it would end with that process, and jaxlib would then abort all others
within a millisecond, with a wall of text. Here it lives a little longer, so that they can end in their own
words.
"""

import os
import signal
import subprocess
import sys
import time

from jaxlib import _jax  # pyright: ignore[reportAttributeAccessIssue]

GRACE_S = 10.0  # that it lives longer than who has started it
READY = b"ready"


def started(address: str, processes: int, silence_s: int) -> subprocess.Popen[bytes]:
    """A service at HOST:PORT, up and listening. Raises OSError if it cannot listen there."""
    words = [sys.executable, "-m", __name__, address, str(processes), str(silence_s)]
    child = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,  # which the system closes with this process
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # what it has to say of lost processes is said better elsewhere
        process_group=0,  # signals to this process's group are not for it
    )
    assert child.stdout is not None
    if child.stdout.readline().strip() != READY:
        child.kill()
        raise OSError(f"jax's service cannot listen at {address}")
    return child


def main(address: str, processes: str, silence_s: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with process 0
    service = _jax.get_distributed_runtime_service(
        address, int(processes), heartbeat_timeout=int(silence_s), shutdown_timeout=30
    )
    sys.stdout.buffer.write(READY + b"\n")
    sys.stdout.flush()
    sys.stdin.read()
    time.sleep(GRACE_S)
    del service
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
