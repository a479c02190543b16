"""What a compiled GPU program launches, read from XLA's optimised HLO text.

Every instruction of the entry computation that is no mere view of memory is one launch: a fusion, a copy, a
library call. A loop's body counts as often as the loop turns. A sort of many elements is really several.
"""

import collections
import dataclasses
import re
from typing import Any

# Instructions without a launch of their own; an asynchronous pair is counted at its start.
VIEWS = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier"}
VIEWS |= {"partition-id", "replica-id", "add-dependency", "copy-done", "async-done", "async-update"}
VIEWS |= {"all-reduce-done", "all-gather-done", "collective-permute-done"}
# Instructions at which the host and the device wait for each other.
HOST = {"infeed", "outfeed", "send", "recv", "send-done", "recv-done", "conditional"}
HOST_MEMORY = "S(5)"  # how a layout says that an array lies in the host's memory
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
OPCODE = re.compile(r"([a-z][\w\-]*)\(")
CALLED = re.compile(r"(?:to_apply|calls)=%?([\w.\-]+)")
TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')


@dataclasses.dataclass
class Launches:
    """Of one program."""

    outside: int = 0  # not in any loop
    loops: list[dict[str, int]] = dataclasses.field(default_factory=list)  # trips, kernels (of one iteration)
    host_transfers: int = 0  # also predicates that the host must read: branches, loops of unknown length
    kinds: dict[str, int] = dataclasses.field(
        default_factory=dict
    )  # launches by kind, the most frequent first

    @property
    def total(self) -> int:
        return self.outside + sum(loop["trips"] * loop["kernels"] for loop in self.loops)

    def record(self) -> dict[str, Any]:
        """What a benchmark stores of it."""
        return {"kernels": self.total, **dataclasses.asdict(self)}


def count(text: str) -> Launches:
    """The launches of a module. A loop within a loop is part of the outer one's iteration.

    Raises:
      ValueError: if the text has no entry computation.
    """
    bodies, entry = computations(text)
    found, kinds = Launches(), collections.Counter()

    def walk(name: str, times: int, inner: bool) -> int:
        kernels = 0
        for line in bodies.get(name, []):
            kind = opcode(line)
            if kind == "while":
                trips, each = loop(line, times)
                kernels += trips * each if inner else 0
                if not inner:
                    found.loops.append({"trips": trips, "kernels": each})
                continue
            found.host_transfers += kind in HOST or HOST_MEMORY in line or "host_callback" in line
            if kind == "call":
                kernels += walk(called(line), times, inner)
            elif kind not in VIEWS:
                kernels += 1
                kinds[label(line, kind)] += times
        return kernels

    def loop(line: str, times: int) -> tuple[int, int]:
        known = TRIPS.search(line)
        trips = int(known[1]) if known else 1
        body, condition = (re.search(rf"{word}=%?([\w.\-]+)", line) for word in ("body", "condition"))
        assert body and condition
        each = walk(body[1], times * trips, True)
        if not known:  # then the device computes whether it goes on, and the host reads it
            found.host_transfers += 1
            each += walk(condition[1], times, True)
        return trips, each

    found.outside = walk(entry, 1, False)
    found.kinds = dict(kinds.most_common())
    return found


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """{computation: lines of its instructions}, and the name of the entry."""
    bodies, entry, lines = {}, "", None
    for line in text.splitlines():
        if header := HEADER.match(line):
            lines = bodies.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None and " = " in line:
            lines.append(line.strip())
    if not entry:
        raise ValueError("no ENTRY in this text: it is no HLO module")
    return bodies, entry


def opcode(line: str) -> str:
    """`fusion` of `%x = f32[2]{0} fusion(%y), ...`: the word before a bracket after the result's type."""
    right = line.split(" = ", 1)[1]
    if right.startswith("("):  # the type of several results
        right = right[closing(right) + 1 :]
    else:
        right = right.partition(" ")[2]
    found = OPCODE.match(right.strip())
    return found[1] if found else "?"


def closing(text: str) -> int:
    """Where the bracket that a text begins with is closed."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return i
    return len(text) - 1


def called(line: str) -> str:
    """The computation that a call is of."""
    found = CALLED.search(line)
    return found[1] if found else ""


def label(line: str, kind: str) -> str:
    """What sort of launch it is: a library's function, a fusion by how it is compiled, or the instruction."""
    target = re.search(r'custom_call_target="([^"]+)"', line)
    fusion = re.search(r'"fusion_backend_config":\{"kind":"([^"]+)"', line)
    return target[1] if target else fusion[1] if fusion else kind
