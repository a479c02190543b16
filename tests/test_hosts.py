"""Several processes share a run: the numbers of one, ends that all hear of, and ways on from there."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import small
from small import assert_same_arrays, assert_same_rows

from jaxrl import config, joint, train
from jaxrl.config import ConfigError, DistributedConfig
from jaxrl.exits import PEER_LOST, PeerLost
from jaxrl.flags import parse
from jaxrl.hosts import join
from jaxrl.hosts.wire import decoded, encoded

QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
SEVERAL = "--xla_force_host_platform_device_count="
# Leaves as the program does: nothing that jax has registered for the end may wait for others.
ENTRY = """
import sys
sys.path.append("tests")
import small
from jaxrl import runtime
code = small.entry()
sys.stdout.flush()
runtime.leave_at_once(code)
"""
RUN = ("--steps=80", "--log_every=20", "--eval_every=40", "--save_every=20", "--batch_size=4", "--eval_eps=4")
KINDS = {  # how environments step, and how they are shared
    "rows from the host": ("--task=toy_catch", "--env.action_repeat=1", "--env.num_envs=4"),
    "states that are saved": ("--env.num_envs=4",),  # EnvPool's are not: its episodes begin anew
    "rows on the devices": ("--env.num_envs=4", "--env.placement=device"),
    "one environment": (  # of physics, whose model each process has on a device of its own
        *("--task=mjx_cartpole_balance", "--env.time_limit=16"),
        *("--env.num_envs=1", "--steps=40", "--eval_eps=3"),
    ),
}
LOST = "is lost: its connection was closed; the same command with --logdir="

pytestmark = pytest.mark.timeout(600)


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, for all processes of this file."""
    return tmp_path_factory.mktemp("cache")


@dataclasses.dataclass
class Ended:
    """What became of one process."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The last it said of itself."""
        return [x for x in self.err.splitlines() if x.startswith("jaxrl: ")][-1]


def begin(folder, cache, *flags, of=1, process=0, at="", devices=2):
    """One of `of` processes that have `devices` devices together."""
    env = os.environ | {"XLA_FLAGS": f"{QUICK} {SEVERAL}{devices // of}", "JAX_PLATFORMS": "cpu"}
    words = [*RUN, f"--runtime.compile_cache={cache}", f"--runtime.devices={devices}", *flags]
    if of > 1:
        where = {"coordinator": at, "processes": of, "process": process, "timeout_s": 120}
        words += [f"--distributed.{name}={value}" for name, value in where.items()]
    return small.start(folder, *words, env=env, code_of=ENTRY)


def all_of(folder, cache, *flags, of, host="127.0.0.1", devices=2, fault=(0, "")):
    """All processes of a run, once they have ended. fault: a process and what befalls it."""
    at = f"{host}:{free_port(host)}"
    children = []
    for i in range(of):
        mine = [f"--debug.fault={fault[1]}"] if fault[0] == i and fault[1] else []
        children.append(begin(folder, cache, *flags, *mine, of=of, process=i, at=at, devices=devices))
    found = []
    for child in children:
        out, err = child.communicate(timeout=300)
        found.append(Ended(child.returncode, out, err))
    assert not any("Traceback" in x.err for x in found), "\n".join(x.err for x in found)
    return found


def straight(folder, cache, kind, devices=2):
    """The same run by one process with as many devices."""
    child = begin(folder, cache, *KINDS[kind], devices=devices)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    return small.Run(folder)


@pytest.fixture(scope="module")
def catch(tmp_path_factory, cache):
    return straight(tmp_path_factory.mktemp("runs") / "catch", cache, "rows from the host")


def assert_same_runs(one: small.Run, other: small.Run) -> None:
    """All rows, episodes and arrays have the same bits, in the same order."""
    assert one.note["exit"] == other.note["exit"] == "done" and one.note["updates"] > 3
    assert_same_rows(one, other)
    games = [[{k: v for k, v in row.items() if k != "wall_s"} for row in x.scores] for x in (one, other)]
    assert games[0] == games[1] and games[0]
    assert_same_arrays(one.arrays(), other.arrays())


def test_two_processes_make_the_run_of_one(tmp_path, cache, catch):
    """Losses, scores of training and evaluations, replay; each writes its part of it, process 0 all else."""
    ended = all_of(tmp_path / "run", cache, *KINDS["rows from the host"], of=2, host="127.0.0.2")
    assert [x.code for x in ended] == [0, 0], ended
    run = small.Run(tmp_path / "run")
    assert_same_runs(catch, run)
    assert run.note["device"]["count"] == 2 and len(run.note["starts"]) == 1
    parts = {x.name for x in (run.path / "checkpoints/latest/80/device").glob("ocdbt.process_*")}
    assert parts == {"ocdbt.process_0", "ocdbt.process_1"}
    assert {row["env"] for row in run.scores} == {0, 1, 2, 3}


def test_one_environment_is_stepped_by_all(tmp_path, cache):
    ended = all_of(tmp_path / "run", cache, *KINDS["one environment"], of=2)
    assert [x.code for x in ended] == [0, 0], ended
    assert_same_runs(straight(tmp_path / "straight", cache, "one environment"), small.Run(tmp_path / "run"))


def test_a_dry_run_of_two_processes(tmp_path, cache):
    """Each steps its own part of the environments, those of evaluations too; process 0 tells."""
    ended = all_of(tmp_path / "run", cache, *KINDS["rows from the host"], "--dry_run", of=2)
    assert [x.code for x in ended] == [0, 0], ended
    assert "nothing was written" in ended[0].out and "memory" not in ended[1].out
    assert not (tmp_path / "run").exists()


def test_a_signal_to_one_stops_all_and_supervisors_bring_back_the_lost(tmp_path, cache):
    """SIGTERM to process 1: all save the same step. Then process 0 is killed: all begin again from there."""
    flags = KINDS["states that are saved"]
    ended = all_of(tmp_path / "run", cache, *flags, of=2, fault=(1, "term@act:5,hang=3@act:6"))
    assert [x.code for x in ended] == [143, 143], ended
    run = small.Run(tmp_path / "run")
    stopped = run.note["env_steps"]
    assert run.note["exit"] == "stopped" and 16 <= stopped <= 32
    assert (run.path / "checkpoints" / "latest" / str(stopped) / "manifest.json").exists()
    # Late enough not to come again, and after the save at 40, which has some time to be written.
    fault = f"hang=3@act:7,kill@act:{(76 - stopped) // 4}"
    ended = all_of(run.path, cache, "--supervise", *flags, of=2, fault=(0, fault))
    assert [x.code for x in ended] == [0, 0], ended
    assert "the run died of SIGKILL" in ended[0].err and "the run lost a process" in ended[1].err
    assert LOST in ended[1].err and f"{run.path} in all processes goes on from step" in ended[1].err
    assert len(run.note["starts"]) == 3
    assert_same_runs(straight(tmp_path / "straight", cache, "states that are saved"), run)


def test_four_lose_one_and_go_on_as_two(tmp_path, cache):
    """On the devices. The others end with a line that names it; another number of processes goes on."""
    kind = "rows on the devices"
    began = time.monotonic()
    ended = all_of(
        tmp_path / "run", cache, *KINDS[kind], of=4, devices=4, fault=(2, "hang=3@act:12,kill@act:13")
    )
    assert [x.code for x in ended] == [69, 69, -9, 69]
    for other in (ended[0], ended[1], ended[3]):
        assert other.line.startswith("jaxrl: process 2 (pid ") and LOST in other.line
        assert other.line.endswith(" in all processes goes on from step 40")
    assert time.monotonic() - began < 240
    run = small.Run(tmp_path / "run")
    assert "process 2 (pid" in run.note["exit"]
    ended = all_of(run.path, cache, *KINDS[kind], of=2, devices=4)
    assert [x.code for x in ended] == [0, 0], ended
    assert len(run.note["starts"]) == 2 and run.steps() == [0, 20, 40, 60, 80]
    alone = straight(tmp_path / "straight", cache, kind, devices=4)
    for one, other in zip(map(small.timeless, alone.rows), map(small.timeless, run.rows), strict=True):
        assert one.keys() == other.keys()
        for name in one:  # four numbers may be added in another order
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, atol=1e-7, err_msg=name)


FLAGS = ("--distributed.timeout_s=1",)


def refusal(capsys, folder, *flags: str, code: int = 2) -> str:
    """The one line with which a command ends before anything is made."""
    assert train.main([*small.TINY, f"--logdir={folder}", *FLAGS, *flags]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert not folder.exists()
    return line


def test_bad_addresses_and_numbers_are_one_line(tmp_path, capsys):
    def refused(**given):
        return refusal(capsys, tmp_path / "run", *(f"--distributed.{k}={v}" for k, v in given.items()))

    assert "distributed.coordinator=here: must be HOST:PORT" in refused(
        coordinator="here", processes=2, process=1
    )
    assert "HOST:PORT" in refused(coordinator="here:70000", processes=2, process=1)
    assert "distributed.processes=0" in refused(coordinator="127.0.0.1:9", process=1)
    assert "must be 0 to 1" in refused(coordinator="127.0.0.1:9", processes=2, process=2)
    assert "distributed.coordinator=10.0.0.1:7654" in refused(processes=2)
    assert "no Slurm, TPU pod or Open MPI" in refused(coordinator="auto")


def test_who_does_not_come_is_waited_for_so_long(tmp_path, capsys):
    at, began = f"127.0.0.1:{free_port()}", time.monotonic()
    where = ("--distributed.processes=3", f"--distributed.coordinator={at}")
    line = refusal(capsys, tmp_path / "run", *where, "--distributed.process=1", code=PEER_LOST)
    assert f"{at}: process 0 was not reached within 1 s (Connection refused)" in line
    line = refusal(capsys, tmp_path / "run", *where, "--distributed.process=0", code=PEER_LOST)
    assert f"process 1, 2 did not come to {at} within 1 s" in line
    assert time.monotonic() - began < 10


def test_what_processes_cannot_share_is_one_line(tmp_path, cache):
    """Of the process where it is found; the others are told, and end with the same code."""
    flags, at = KINDS["rows from the host"], f"127.0.0.1:{free_port()}"
    seeds = [begin(tmp_path / "run", cache, *flags, f"--seed={i}", of=2, process=i, at=at) for i in (0, 1)]
    lines = [child.communicate(timeout=100)[1].splitlines() for child in seeds]
    assert [child.returncode for child in seeds] == [2, 2]
    assert lines[1] == ["jaxrl: seed=1: 0 in process 0; give all processes the same command"]
    assert len(lines[0]) == 1 and lines[0][0].endswith(lines[1][0].removeprefix("jaxrl: "))
    ended = all_of(tmp_path / "run", cache, *flags, "--batch_size=5", of=2)
    assert [x.code for x in ended] == [2, 2]
    assert "5: cannot be divided over 2 devices in 2 processes; use --batch_size=6" in ended[0].line
    command = parse(["--config=debug"])
    playground = config.replace(command.config, {"task": "playground_cartpole_balance"})
    with pytest.raises(ConfigError, match="cannot be shared by 2 processes; use one"):
        joint.agreed(dataclasses.replace(command, config=playground), types.SimpleNamespace(count=2))
    assert not (tmp_path / "run").exists()


@dataclasses.dataclass
class Left:
    """Stands for the end of a process."""

    code: int = -1
    words: str = ""
    happened: threading.Event = dataclasses.field(default_factory=threading.Event)

    def __call__(self, code, words):
        self.code, self.words = code, words
        self.happened.set()


def team(n: int, facts=None, silence_s=60.0):
    """n processes in threads; and what became of each."""
    port, found = free_port(), [Left() for _ in range(n)]
    teams: list = [None] * n

    def meet(i):
        wanted = DistributedConfig(
            coordinator=f"127.0.0.1:{port}", processes=n, process=i, timeout_s=20.0, heartbeat_s=silence_s
        )
        try:
            teams[i] = join(wanted, (facts or {}).get(i, {}), found[i])
        except (ConfigError, PeerLost) as error:
            teams[i] = error

    together(meet, range(n))
    return teams, found


def together(call, items):
    """What calls in a thread each return."""
    results = {}
    threads = [threading.Thread(target=lambda x=x: results.setdefault(x, call(x))) for x in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return [results[x] for x in items]


def test_processes_agree_and_end_together():
    teams, left = team(3)
    assert together(lambda i: teams[i].share({"step": 5 + i}), range(3)) == [{"step": 5}] * 3
    assert together(lambda i: teams[i].gather(i * i), range(3)) == [[0, 1, 4]] * 3
    rows = together(lambda i: teams[i].joined({"x": np.full((2, 3), i, np.uint8)}), range(3))
    for found in rows:
        np.testing.assert_array_equal(
            found["x"], np.repeat(np.arange(3, dtype=np.uint8), 2)[:, None] * [1, 1, 1]
        )

    def fail():
        raise OSError("no room")

    def led(i):
        with pytest.raises(OSError, match="no room"):
            teams[i].led(fail)
        return teams[i].led(lambda: 7)

    assert together(led, range(3)) == [7] * 3
    together(lambda i: teams[i].end(0), (1, 2))
    for other in teams[1:]:
        other._peers[0].link.shutdown(socket.SHUT_RDWR)  # as the system does when they are gone
    began = time.monotonic()
    teams[0].end(0)
    assert time.monotonic() - began < 5 and not any(x.happened.is_set() for x in left)


def test_an_end_with_an_error_ends_all_with_its_code_and_words():
    teams, left = team(3)
    teams[2].end(74, "metrics were lost; free disk space")
    for other in left[:2]:
        assert other.happened.wait(10) and other.code == 74
        assert other.words.startswith("process 2 (pid ") and other.words.endswith(
            "has ended with exit code 74: metrics were lost; free disk space"
        )


def test_a_silent_process_is_lost_after_a_heartbeat():
    """Its connection stands, but nobody answers: a host without power, or a process that was stopped."""
    teams, left = team(3, silence_s=1.0)
    teams[1]._peers[0].send = lambda *message: None  # it hears, and says nothing
    began = time.monotonic()
    for other in (left[0], left[2]):
        assert other.happened.wait(10) and other.code == PEER_LOST
        assert "process 1 (pid" in other.words and "nothing was heard of it for 1 s" in other.words
    assert time.monotonic() - began < 5


def test_versions_must_be_the_same():
    teams, _ = team(2, facts={0: {"jax": "1"}, 1: {"jax": "2"}})
    assert all(isinstance(x, ConfigError) and "jax: 1 in process 0, 2 in process 1" in str(x) for x in teams)


def test_strangers_at_the_port_disturb_nobody():
    port, teams = free_port(), []

    def meet(i):
        wanted = DistributedConfig(coordinator=f"127.0.0.1:{port}", processes=2, process=i, timeout_s=20.0)
        teams.append(join(wanted, {}, Left()))

    leader = threading.Thread(target=meet, args=(0,))
    leader.start()
    for words in (b"GET / HTTP/1.1\r\n\r\n", b"", b"H" + b"\xff" * 8, b"H" + b"\0" * 7 + b"\x02{}"):
        end = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port)) as link:
                    link.sendall(words)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
                time.sleep(0.05)
    meet(1)
    leader.join(10)
    assert sorted(x.index for x in teams) == [0, 1]


def test_values_come_back_as_they_were():
    value = {"a": [1, None, "x", float("inf")], "b": {"c": np.arange(6, dtype=np.int16).reshape(2, 3)}}
    value["d"] = [np.zeros((0, 2), np.float32), np.array(True), np.array([1.5, np.nan])]
    back = decoded(encoded(value))
    assert back["a"] == value["a"]
    np.testing.assert_array_equal(back["b"]["c"], value["b"]["c"])
    for found, wanted in zip(back["d"], value["d"], strict=True):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        np.testing.assert_array_equal(found, wanted)


def test_the_service_outlives_who_started_it_and_no_longer():
    """Long enough for the others to end in their own words."""
    code = (
        "from jaxrl.hosts import service; import os\n"
        f"print(service.started('127.0.0.1:{free_port()}', 2, 10).pid, flush=True); os._exit(0)"
    )
    env = os.environ | {"PYTHONPATH": str(small.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    alive = pathlib.Path("/proc") / done.stdout.strip()
    assert alive.exists()
    end = time.monotonic() + 30
    while alive.exists() and "Z" not in (alive / "stat").read_text().split(")")[-1].split()[0]:
        assert time.monotonic() < end
        time.sleep(0.2)
