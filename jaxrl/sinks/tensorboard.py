"""TensorBoard event files, written record by record in the thread that calls.

tensorboardX's SummaryWriter has a queue and a thread of its own: when that thread dies (a full
disk), the next call blocks for ever. Only its protobufs and its record framing are used here.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import ClassVar

from tensorboardX.proto.event_pb2 import Event as Record  # pyright: ignore  (made at import)
from tensorboardX.proto.event_pb2 import SessionLog  # pyright: ignore
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore
from tensorboardX.record_writer import RecordWriter

from jaxrl.sinks.row import Event, Row, Sink, Video

FLUSH_S = 0.5  # a flush is an fsync: rows that come faster share one


class TensorBoard(Sink):
    """One event per row, one value per number of the row, tags = metric names, step = env_steps.

    Videos are shown among the images, which move: an animated GIF is one of their formats.
    Wall times are those of the rows: two events are as far apart as their `wall_s`.
    """

    name = "tensorboard"
    takes: ClassVar[tuple[type, ...]] = (Row, Video)
    tick_s = FLUSH_S

    def __init__(self, directory: Path, resume_step: int | None) -> None:
        """Opens a new event file; readers forget what older files say beyond `resume_step`.

        A new run (None) in a directory that holds event files makes readers forget all of them.
        """
        directory = directory.resolve()  # RecordWriter takes "gs:" and "s3:" for object stores
        directory.mkdir(parents=True, exist_ok=True)
        older = sorted(directory.glob("events.out.tfevents.*"))
        self._record = RecordWriter(str(directory / _file_name(older)))
        self._started_at: float | None = None  # unix seconds at which wall_s was 0
        self._flushed_at = 0.0
        self._unflushed = False
        self._append(Record(wall_time=time.time(), file_version="brain.Event:2"))
        if older:
            first_step = 0 if resume_step is None else resume_step + 1
            start = SessionLog(status=SessionLog.START)
            self._append(Record(wall_time=time.time(), step=first_step, session_log=start))
        self._flush()

    def take(self, event: Event) -> None:
        if isinstance(event, Video):
            return self._show(event)
        assert isinstance(event, Row)
        if self._started_at is None:
            self._started_at = time.time() - event.wall_s
        numbers = {
            "agent_steps": event.agent_steps,
            "updates": event.updates,
            "episodes": event.episodes,
            "wall_s": event.wall_s,
            **event.scalars,
        }
        values = [Summary.Value(tag=name, simple_value=float(x)) for name, x in numbers.items()]
        wall_time = self._started_at + event.wall_s
        self._append(Record(wall_time=wall_time, step=event.step, summary=Summary(value=values)))
        self.tick()

    def _show(self, video: Video) -> None:
        width, height = struct.unpack_from("<HH", video.gif, 6)  # behind "GIF89a"
        rgb = 3  # channels
        image = Summary.Image(height=height, width=width, colorspace=rgb, encoded_image_string=video.gif)
        value = Summary.Value(tag=video.name, image=image)
        self._append(Record(wall_time=time.time(), step=video.step, summary=Summary(value=[value])))
        self.tick()

    def tick(self) -> None:
        if self._unflushed and time.monotonic() - self._flushed_at >= FLUSH_S:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self._record.close()

    def _append(self, record: Record) -> None:
        self._record.write(record.SerializeToString())
        self._unflushed = True

    def _flush(self) -> None:
        self._record.flush()
        self._flushed_at = time.monotonic()
        self._unflushed = False


def _file_name(older: list[Path]) -> str:
    """A name that sorts after the older files: readers take them in that order."""
    seconds = [int(path.name.split(".")[3]) for path in older if path.name.split(".")[3].isdigit()]
    second = max([int(time.time()), *(s + 1 for s in seconds)])
    return f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
