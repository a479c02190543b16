"""Messages between two processes: how they are cut, and JSON with numpy arrays in it as bytes."""

import dataclasses
import json
import math
import queue
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

HEAD = struct.Struct(">cQ")  # of a message: kind, bytes that follow
HELLO, VALUE, PING, END = b"H", b"V", b"P", b"E"


@dataclasses.dataclass
class Peer:
    """Another process, at the other end of a connection."""

    link: socket.socket
    index: int
    name: str  # where it is, for humans
    values: queue.SimpleQueue = dataclasses.field(default_factory=queue.SimpleQueue)
    is_done: bool = False  # it has said that it ends, all being well
    sending: Any = dataclasses.field(default_factory=threading.Lock)
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def words(self) -> str:
        return f"process {self.index} ({self.name})"

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        with self.sending:
            self.link.sendall(HEAD.pack(kind, len(payload)))
            self.link.sendall(payload)


def received(link: socket.socket, most: float = math.inf) -> tuple[bytes, bytes]:
    """Kind and content of the next message. Raises EOFError at the end of a connection, or OSError."""
    kind, size = HEAD.unpack(exactly(link, HEAD.size))
    if size > most:
        raise EOFError("not a message")
    return kind, exactly(link, size)


def exactly(link: socket.socket, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = link.recv(min(left, 2**20))
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def encoded(value: Any) -> bytes:
    """JSON with numpy arrays in it as bytes: no code can be hidden in them."""
    import numpy as np  # the command line is read without it

    arrays: list[np.ndarray] = []

    def plain(x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic):
            arrays.append(np.asarray(x))
            return {"__array__": [arrays[-1].dtype.name, list(arrays[-1].shape)]}
        if isinstance(x, Mapping):
            return {k: plain(v) for k, v in x.items()}
        return [plain(v) for v in x] if isinstance(x, list | tuple) else x

    head = json.dumps(plain(value)).encode()
    return b"".join([struct.pack(">Q", len(head)), head, *(x.tobytes() for x in arrays)])


def decoded(payload: bytes) -> Any:
    """Inverse of `encoded`; arrays can be written to."""
    import numpy as np

    (size,) = struct.unpack_from(">Q", payload)
    at = 8 + size

    def whole(x: Any) -> Any:
        nonlocal at
        if isinstance(x, dict) and "__array__" in x:
            name, shape = x["__array__"]
            dtype = np.dtype(name)
            count = math.prod(shape)
            found = np.frombuffer(payload, dtype, count, at).reshape(shape).copy()
            at += count * dtype.itemsize
            return found
        if isinstance(x, dict):
            return {k: whole(v) for k, v in x.items()}
        return [whole(v) for v in x] if isinstance(x, list) else x

    return whole(json.loads(payload[8:at]))
