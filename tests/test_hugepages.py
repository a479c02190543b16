"""Huge pages: asked for once, at the start, where the kernel gives them on request."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxrl import hugepages

PROGRAM = """
import os, sys
from jaxrl import hugepages, runtime
hugepages.changes.__defaults__ = (__import__("pathlib").Path(sys.argv[1]),)
print("begins", flush=True)
runtime.ask_for_huge_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:])
"""
LARGE = """
from jaxrl import runtime
runtime.ask_for_huge_pages()
block = b"x" * (64 << 20)
print(next(x.split()[1] for x in open("/proc/self/smaps_rollup") if x.startswith("AnonHugePages")))
"""
WITHOUT = {k: v for k, v in os.environ.items() if k not in (hugepages.TUNABLES, hugepages.BEGUN)}


@pytest.fixture
def setting(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "enabled"
    file.write_text("always [madvise] never")
    return file


def begun(setting: pathlib.Path, tunables: str | None) -> tuple[int, list[str]]:
    """How often a program began, and what it then said of itself; all of it as one process."""
    env = WITHOUT | ({hugepages.TUNABLES: tunables} if tunables else {})
    program = [sys.executable, "-c", PROGRAM, str(setting), "one", "two words"]
    with subprocess.Popen(program, env=env, stdout=subprocess.PIPE, text=True) as process:
        *starts, last = process.communicate()[0].splitlines()
    assert process.returncode == 0
    number, *said = last.split(" ")
    assert int(number) == process.pid
    return len(starts), said


def test_it_begins_once_more_as_the_same_process(setting):
    assert begun(setting, None) == (2, ["glibc.malloc.hugetlb=1", "one", "two", "words"])


def test_other_tunables_stay(setting):
    times, said = begun(setting, "glibc.malloc.arena_max=4")
    assert (times, said[0]) == (2, "glibc.malloc.arena_max=4:glibc.malloc.hugetlb=1")


def test_they_can_be_refused(setting):
    times, said = begun(setting, "glibc.malloc.hugetlb=0")
    assert (times, said[0]) == (1, "glibc.malloc.hugetlb=0")


@pytest.mark.parametrize("text", [None, "[always] madvise never", "always madvise [never]"])
def test_nothing_begins_anew_where_it_would_change_nothing(setting, text):
    setting.unlink()
    if text:
        setting.write_text(text)
    times, said = begun(setting, None)
    assert (times, said[0]) == (1, "None")


def test_once_is_enough(setting):
    """Where GLIBC_TUNABLES does not come through, as with a Python that has capabilities."""
    env = {hugepages.BEGUN: str(os.getpid())}
    assert not hugepages.changes(env, setting)
    assert hugepages.changes({hugepages.BEGUN: "1"}, setting)  # a child of one that has begun anew


def test_not_under_a_debugger(setting, monkeypatch):
    monkeypatch.setattr(sys, "gettrace", lambda: print)
    assert not hugepages.changes({}, setting)


@pytest.mark.skipif(not hugepages.changes({}), reason="the kernel does not give huge pages on request")
@pytest.mark.parametrize("refused", [False, True])
def test_large_blocks_lie_in_huge_pages(refused):
    env = WITHOUT | ({hugepages.TUNABLES: "glibc.malloc.hugetlb=0"} if refused else {})
    program = [sys.executable, "-c", LARGE]
    found = subprocess.run(program, env=env, capture_output=True, text=True, check=True)
    assert (int(found.stdout) > 32 << 10) != refused  # KiB
