"""Carries events to the sinks in one background thread.

The files of record (`journals`) lose nothing: they are served first, wait in memory when they
cannot be written, and are tried again. Every other sink may fall behind, drop, raise or hang without
harm to anyone else. A thread that hangs inside a sink is set aside, together with that sink,
until the call returns; a fresh thread goes on with the rest. So one thread works at a time, and a
hanging sink delays the others by at most `patience_s`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxrl.faults import OFF, PLACES, Faults
from jaxrl.sinks.row import Event, Note, Row, ScoreRow, Sink


@dataclasses.dataclass(frozen=True)
class Limits:
    waiting: int = 4_096  # events kept for one sink
    spill: int = 100_000  # events kept for one journal that cannot be written
    block_s: float = 5.0  # longest wait of the training for a journal
    patience_s: float = 2.0  # after which a call into a sink counts as hanging
    close_s: float = 5.0  # longest wait of `close` for the journals; others get 2/5 of it
    hurry_s: float = 0.5  # replaces patience_s while closing, if it is shorter
    retry_s: float = 0.5  # first pause of a journal after an error; doubles up to 30 s


class _Mark(enum.Enum):
    TICK = 1
    CLOSE = 2


class _Slot:
    """One sink and what waits for it. Every field is guarded by the courier's lock."""

    def __init__(self, sink: Sink, journal: bool, retry_s: float) -> None:
        self.sink = sink
        self.journal = journal
        self.waiting: collections.deque[Event | _Mark] = collections.deque()
        self.current: Event | _Mark | None = None  # what a thread is inside the sink with
        self.stuck = False  # that thread has been set aside
        self.alive = True
        self.spilling = False
        self.failure: str | None = None  # why a journal cannot be written now
        self.dropped = 0  # events
        self.dropped_steps: list[int] = []  # first and last of them, env_steps
        self.errors = 0
        self.first_retry_s = self.retry_s = retry_s
        self.retry_at = 0.0
        self.tick_at = math.inf if sink.tick_s is None else 0.0

    def due_at(self) -> float:
        """Monotonic seconds at which the thread has something to do here; inf = nothing."""
        if self.current or not self.alive:
            return math.inf
        return min(self.retry_at if self.waiting else math.inf, self.tick_at)

    def enter(self) -> Event | _Mark:
        """The next thing to deliver, noted as `current`."""
        if self.waiting and self.retry_at <= time.monotonic():
            self.current = self.waiting.popleft()
        else:
            self.tick_at = time.monotonic() + (self.sink.tick_s or math.inf)
            self.current = _Mark.TICK
        return self.current

    def drop(self, events: Iterable[Event | _Mark]) -> None:
        """Counts events that this sink will not get."""
        lost = [event for event in events if not isinstance(event, _Mark)]
        steps = [event.step for event in lost if isinstance(event, (Row, ScoreRow))]
        self.dropped += len(lost)
        if steps := self.dropped_steps + steps:
            self.dropped_steps = [min(steps), max(steps)]

    def unwritten(self) -> list[Event]:
        """Events that have not reached the sink, or not come back from it."""
        return [x for x in (self.current, *self.waiting) if x and not isinstance(x, _Mark)]


class Courier:
    """See the module. Methods are called by the training thread; none of them raises or does I/O."""

    def __init__(
        self,
        journals: Sequence[Sink],
        others: Sequence[Sink],
        limits: Limits | None = None,
        faults: Faults = OFF,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`say` takes a line for the human where none of these sinks shows one."""
        self._limits, self._faults, self._say = limits or Limits(), faults, say
        retry_s = self._limits.retry_s
        self._last_resort = _Slot(_Stderr(), False, retry_s)
        self._slots = [_Slot(sink, True, retry_s) for sink in journals]
        self._slots += [_Slot(sink, False, retry_s) for sink in others]
        self._change = threading.Condition()
        self._busy: tuple[_Slot, float] | None = None  # where the thread is, since when
        self._patience_s = self._limits.patience_s
        self._closing = False
        self._troubled = False
        self._worker: threading.Thread | None = None  # the one that may take up work
        self._start()

    def post(self, event: Event) -> None:
        """Leaves an event for every sink that takes its kind."""
        self._attend()
        with self._change:
            for slot in self._slots:
                if isinstance(event, slot.sink.takes):
                    self._put(slot, event)
            self._change.notify_all()

    def progress(self, step: int, steps: int, extra: dict[str, float | str]) -> None:
        self._attend()
        for slot in self._slots:
            slot.sink.progress(step, steps, extra)

    def faults(self) -> dict[str, float]:
        """Counters of what went wrong so far; empty while nothing did."""
        if not self._troubled:
            return {}
        with self._change:
            counts = {f"sinks/{slot.sink.name}_dropped": slot.dropped for slot in self._slots}
            counts |= {f"sinks/{slot.sink.name}_errors": slot.errors for slot in self._slots}
        return {name: count for name, count in counts.items() if count}

    def failure(self) -> str | None:
        """Why a journal cannot be written at this moment; None if all is well."""
        with self._change:
            return next((slot.failure for slot in self._slots if slot.failure), None)

    def lost(self) -> dict[str, int]:
        """Events lost for good, by journal."""
        with self._change:
            return {s.sink.name: s.dropped for s in self._slots if s.journal and s.dropped}

    def flush(self, timeout_s: float) -> bool:
        """Waits until the journals hold everything posted so far; False if they do not by then.

        False at once where a journal cannot be written, or hangs: there is nothing to wait for.
        """
        journals = [slot for slot in self._slots if slot.journal]

        def waits() -> bool:
            return any(slot.unwritten() and not (slot.failure or slot.stuck) for slot in journals)

        with self._change:
            self._wait_until(lambda: not waits(), timeout_s)
            return not any(s.unwritten() for s in journals)

    def close(self, close_s: float | None = None) -> None:
        """Delivers what waits, closes the sinks, says what was lost. Waits a bounded time.

        Args:
          close_s: replaces that of the limits.
        """
        with self._change:
            if self._closing:
                return
            self._limits = dataclasses.replace(self._limits, close_s=close_s or self._limits.close_s)
            self._closing = True
            self._patience_s = min(self._patience_s, self._limits.hurry_s)
            for slot in self._slots:
                slot.waiting.append(_Mark.CLOSE)
                slot.retry_at = 0.0
            self._change.notify_all()
            journals = [slot for slot in self._slots if slot.journal]
            self._wait_until(lambda: not any(s.alive for s in self._slots), 0.4 * self._limits.close_s)
            self._wait_until(lambda: not any(s.alive for s in journals), 0.6 * self._limits.close_s)
            for slot in self._slots:
                self._account(slot)
            self._last_resort.waiting.append(_Mark.CLOSE)
            self._change.notify_all()
            self._wait_until(lambda: not self._last_resort.alive, self._limits.close_s / 5)
            worker, self._worker = self._worker, None
            self._change.notify_all()
        if worker is not None:
            worker.join(timeout=0.1)

    # The thread.

    def _start(self) -> None:
        # A daemon: a sink that hangs for ever must not keep the process alive.
        self._worker = threading.Thread(target=self._work, name="sinks", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        while (job := self._next_job()) is not None:
            slot, event = job
            error = _attempt(slot, event, self._faults)
            with self._change:
                self._settle(slot, event, error)
                self._change.notify_all()

    def _next_job(self) -> tuple[_Slot, Event | _Mark] | None:
        """Waits for work; None when another thread has taken over, or all is closed."""
        with self._change:
            while self._worker is threading.current_thread():
                now = time.monotonic()
                slot = min(self._all_slots(), key=lambda s: max(s.due_at(), now))
                due_at = slot.due_at()
                if due_at <= now:
                    self._busy = (slot, now)
                    return slot, slot.enter()
                self._busy = None
                self._change.wait(None if due_at == math.inf else due_at - now)
        return None

    def _settle(self, slot: _Slot, event: Event | _Mark, error: BaseException | None) -> None:
        slot.current, slot.stuck = None, False
        cause = f"{type(error).__name__}: {error}"
        if error is None:
            slot.spilling = slot.spilling and len(slot.waiting) >= self._limits.waiting
            slot.retry_at, slot.retry_s = 0.0, slot.first_retry_s
            if slot.failure:
                slot.failure = None
                self._complain(f"{slot.sink.name}: writing again, nothing lost", slot)
            slot.alive = event is not _Mark.CLOSE
            return
        self._troubled = True
        slot.errors += 1
        if slot.journal and isinstance(error, OSError) and not isinstance(event, _Mark):
            slot.waiting.appendleft(event)
            slot.retry_at = time.monotonic() + (0.1 if self._closing else slot.retry_s)
            slot.retry_s = min(30.0, 2 * slot.retry_s)
            if not slot.failure:
                slot.failure = f"{slot.sink.name} cannot be written ({cause})"
                self._complain(f"{slot.failure}; rows wait in memory, trying again", slot)
        elif slot.journal:
            slot.drop([event])
            slot.alive = event is not _Mark.CLOSE
            self._complain(f"{slot.sink.name}: one event lost ({cause})", slot)
        else:
            slot.alive = False
            slot.drop([event, *slot.waiting])
            slot.waiting.clear()
            self._complain(f"{slot.sink.name} is off for the rest of this run ({cause})", slot)

    # What the training thread does; the lock is held where a method says so.

    def _attend(self) -> None:
        """Sets a hanging thread aside. Called often: one comparison where all is well."""
        busy = self._busy
        if busy is not None and time.monotonic() - busy[1] > self._patience_s:
            with self._change:
                self._set_aside()

    def _set_aside(self) -> None:
        busy = self._busy
        if busy is None or time.monotonic() - busy[1] <= self._patience_s:
            return
        slot, _ = busy
        slot.stuck = True
        self._busy = None
        self._complain(f"{slot.sink.name} hangs; going on without it until it answers", slot)
        self._start()

    def _put(self, slot: _Slot, event: Event) -> None:
        limit = self._limits.waiting
        if slot.journal and len(slot.waiting) >= limit and not slot.spilling:
            self._wait_until(lambda: len(slot.waiting) < limit, self._limits.block_s)
            slot.spilling = len(slot.waiting) >= limit
        if self._closing or not slot.alive or (slot.journal and len(slot.waiting) >= self._limits.spill):
            slot.drop([event])
            self._troubled = True
            return
        if not slot.journal and len(slot.waiting) >= limit:
            slot.drop([slot.waiting.popleft()])  # the newest are worth more to whoever watches
            self._troubled = True
        slot.waiting.append(event)

    def _wait_until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not reached() and (left := end - time.monotonic()) > 0:
            self._set_aside()
            self._change.wait(min(left, 0.05))
        return reached()

    def _complain(self, text: str, about: _Slot) -> None:
        """One line for the human, through a sink that works; the lock is held."""
        for slot in self._slots:
            shows = slot is not about and slot.alive and not slot.stuck and Note in slot.sink.takes
            if shows and not self._closing:
                slot.waiting.append(Note(text))
                return
        if self._say:
            return self._say(text)
        self._last_resort.waiting.append(Note(text))

    def _account(self, slot: _Slot) -> None:
        """Counts and names what a closing sink has not written; the lock is held."""
        slot.drop(slot.unwritten())
        if slot.alive and slot.sink.slow_s:
            self._complain(f"{slot.sink.name} was left before it had finished", slot)
        slot.alive = False
        if slot.dropped:
            self._troubled = True
            span = ", steps {} to {}".format(*slot.dropped_steps) if slot.dropped_steps else ""
            cause = f": {slot.failure}" if slot.failure else ""
            verb = "lacks" if slot.journal else "dropped"
            self._complain(f"{slot.sink.name} {verb} {slot.dropped} events{span}{cause}", slot)

    def _all_slots(self) -> Iterator[_Slot]:
        yield from self._slots
        yield self._last_resort


def _attempt(slot: _Slot, event: Event | _Mark, faults: Faults) -> BaseException | None:
    """Calls the sink outside the lock; what it raises is returned."""
    try:
        match event:
            case _Mark.TICK:
                slot.sink.tick()
            case _Mark.CLOSE:
                slot.sink.close()
            case _:
                if faults.armed and slot.sink.name in PLACES:
                    faults.at(slot.sink.name)
                slot.sink.take(event)
    except BaseException as error:  # SystemExit too: libraries raise it, and it would end the thread
        if not slot.journal:
            with contextlib.suppress(Exception):
                slot.sink.close()
        return error
    return None


class _Stderr(Sink):
    """Where complaints go when no terminal can show them: unbuffered, so that no lock is left held."""

    name = "stderr"

    def take(self, event: Event) -> None:
        if isinstance(event, Note):
            os.write(2, f"{event.text}\n".encode())
