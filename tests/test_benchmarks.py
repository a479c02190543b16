"""Every benchmark runs at its smallest and prints one line of strict JSON; what it counts is right."""

import json
import math
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from benchmarks import flops, random_scores, record
from jaxrl.envs.games import ATARI100K

ROOT = pathlib.Path(__file__).parents[1]
HEAD = {"benchmark", "id", "argv", "time", "machine", "versions", "git", "load_before", "load_after"}


def run(*words: str) -> dict[str, Any]:
    """The record that a benchmark prints; XLA takes little care here, since only the record matters."""
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | quick,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *_, last = done.stdout.splitlines()
    found = json.loads(last, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found.keys() >= HEAD
    assert found["versions"]["jax"] == jax.__version__
    return found


def test_updates_measures_the_update_of_the_trainer(tmp_path):
    words = "--size=debug --batch=2 --length=4 --repeats=2 --block=1 --policy_calls=3 --rows=50"
    out = tmp_path / "folder" / "updates.json"
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]  # of all tests: compiling takes most of this one's time
    found = run(
        "benchmarks.updates", *words.split(), "--set", "loss.horizon=3", f"--out={out}", f"--cache={cache}"
    )
    assert found == json.loads(out.read_text())
    assert (found["dtype"], found["device"]["platform"]) == ("float32", "cpu")
    assert found["settings"] == ["loss.horizon=3"]
    assert len(found["update_s"]) == 2
    assert found["flops_per_update"] > found["conv_flops_per_update"] > 0
    assert found["replayed_steps_per_s"] == pytest.approx(8 * found["updates_per_s"], rel=1e-3)
    assert found["share_of_peak"] == pytest.approx(
        found["flops_per_update"] * found["updates_per_s"] / found["peak_flops_per_s"], rel=0.01, abs=1e-4
    )
    for name in ("trace_s", "xla_s", "programs_s", "cpu_s_per_update", "temp_mib", "parameters", "policy_ms"):
        assert found[name] > 0, name
    assert found["peak_rss_mib"] > 100
    assert str(tmp_path) not in out.read_text()
    assert cache not in out.read_text()


def test_smoke_runs_the_trainer_and_reads_what_it_wrote():
    settings = ["agent=random", "steps=200", "eval_every=200", "tensorboard.enabled=false"]
    found = run(
        "benchmarks.smoke",
        "--config=debug",
        "--updates=0",
        "--timeout=100",
        "--caches",
        "cold",
        "--set",
        *settings,
    )
    cold = found["cold"]
    assert cold["run"]["rows"] == [0, 100, 200]
    assert cold["run"]["evaluations"] == [200]
    assert cold["wall_s"] == pytest.approx(cold["setup_s"] + cold["train_s"] + cold["eval_s"], abs=0.02)
    assert min(cold["setup_s"], cold["train_s"], cold["cpu_s"]) > 0
    assert cold["peak_rss_mib"] > 50
    assert "warm" not in found


def test_smoke_refuses_a_run_that_made_other_updates():
    settings = ["agent=random", "eval_every=0", "checkpoint.enabled=false", "tensorboard.enabled=false"]
    words = ["--config=debug", "--updates=7", "--timeout=100", "--caches", "cold", "--set", *settings]
    with pytest.raises(AssertionError, match="updates are 0, should be 7"):
        run("benchmarks.smoke", *words)


def test_versus_takes_turns_and_divides(tmp_path):
    log = tmp_path / "turns"

    def command(side: str, rate: float) -> str:
        program = (
            f"import json; file = open({str(log)!r}, 'a'); file.write({side!r}); print('{{not json'); "
            f"print(json.dumps({{'speed': {{'rate': {rate}}}, 'ms': {rate}}})); print('bye')"
        )
        return shlex.join([sys.executable, "-c", program])

    fields = ["--field", "speed.rate", "ms", "--peer_field", "ms", "ms", "--rounds=2"]
    found = run("benchmarks.versus", "--ours", command("a", 3.0), "--peer", command("b", 2.0), *fields)
    assert log.read_text() == "abab"
    first, second = found["fields"]
    assert (first["field"], first["peer_field"], first["ratio"]) == ("speed.rate", "ms", 1.5)
    assert first["ours"] == [3.0, 3.0]
    assert first["peer"] == [2.0, 2.0]
    assert second["round_ratios"] == [1.5, 1.5]


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("import sys; sys.exit(3)", "exit code 3"),
        ("print(1)", "no record"),
        ("print('{}')", "no field rate"),
        ("print('{\"rate\": null}')", "not a number"),
    ],
)
def test_versus_names_what_is_wrong_with_a_side(program, fault):
    command = shlex.join([sys.executable, "-c", program])
    with pytest.raises(AssertionError, match=fault):
        run("benchmarks.versus", "--ours", command, "--peer", command, "--field", "rate", "--rounds=1")


def test_random_scores_compares_with_the_published_ones(tmp_path):
    out = tmp_path / "scores.json"
    words = ["--games", "breakout", "--episodes=2", f"--out={out}", "--set", "env.time_limit=400"]
    found = run("benchmarks.random_scores", *words)
    (game,) = found["games"]
    assert (game["task"], game["published"]) == ("atari_breakout", 1.7)
    assert game["atari100k"]["n"] == game["source"]["n"] == 2
    assert game["atari100k"]["agent_steps"] <= 100
    assert "| breakout | 1.7 | " in out.with_suffix(".md").read_text()


def test_envs_measures_the_adapter():
    words = "--cases rgb64 --num_envs 1 --windows 1 --seconds 0.01".split()
    (row,) = run("benchmarks.envs", *words)["rows"]
    assert row["ours_steps_per_s"] > 0


def test_env_steps_measures_physics():
    words = "--tasks cartpole_balance --num_envs 2 --windows 1 --seconds 0.01".split()
    rows = run("benchmarks.env_steps", *words)["rows"]
    found = {row["part"]: row for row in rows}
    assert found.keys() == {"mujoco", "physics", "step"}
    assert all(row["physics_steps_per_s_core"] > 0 for row in rows) and found["step"]["finite"]


def test_a_score_is_published_for_every_game():
    assert tuple(random_scores.load_published()) == ATARI100K


def test_z_counts_the_errors_of_both_means():
    assert random_scores.z_score(2.0, 3.0, 15) == pytest.approx(2 / (3 * math.sqrt(1 / 15 + 1 / 30)))
    assert random_scores.z_score(0.0, 0.0, 15) == 0
    assert random_scores.z_score(-1.0, 0.0, 15) == -math.inf


def counted(function, *args) -> tuple[float, float]:
    found = flops.count(jax.make_jaxpr(function)(*args))
    return found["dot"], found["conv"]


def test_flops_of_products_and_convolutions():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 5))
    assert counted(jnp.matmul, a, b) == (2 * 2 * 3 * 4 * 5, 0)

    def conv(x, w, **options):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
        )

    x, w = jnp.ones((2, 8, 8, 6)), jnp.ones((5, 5, 6, 7))
    one = 2 * (2 * 8 * 8 * 7) * (5 * 5 * 6)
    assert counted(conv, x, w) == (0, one)
    grouped = counted(lambda x, w: conv(x, w, feature_group_count=2), x, jnp.ones((5, 5, 3, 8)))
    assert grouped == (0, 2 * (2 * 8 * 8 * 8) * (5 * 5 * 3))
    gradients = counted(jax.grad(lambda x, w: jnp.square(conv(x, w)).sum(), (0, 1)), x, w)
    assert gradients == (0, 3 * one)  # the result is needed by the square, then one for each gradient


def test_flops_of_loops_branches_and_gradients():
    x = jnp.ones((4, 4))
    one = 2 * 4**3

    def scanned(x):
        return jax.lax.scan(lambda c, _: (c @ c, None), x, None, 6)[0]

    def looped(x, n):
        return jax.lax.fori_loop(0, n, lambda _, c: scanned(c), x)

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert counted(jax.jit(scanned), x)[0] == 6 * one
    assert counted(looped, x, 3)[0] == 6 * one  # a traced length: one turn
    assert counted(branched, x)[0] == 2 * one
    assert counted(jax.value_and_grad(lambda x: (x @ x).sum()), x)[0] == 3 * one
    recomputed = jax.value_and_grad(lambda x: jax.checkpoint(scanned)(x).sum())
    assert counted(recomputed, x)[0] == (6 + 6 + 12) * one


def test_flops_leave_out_what_no_result_needs():
    x = jnp.ones((4, 4))

    def wasteful(x):
        def step(c, _):
            return (c[0] @ c[0], c[1] @ c[1]), None

        x @ x
        return jax.lax.scan(step, (x, x), None, 6)[0][1]

    assert counted(wasteful, x)[0] == 6 * 2 * 4**3


def test_records_are_strict_and_say_nothing_of_the_disk():
    assert record.strict({"a": [1.0, math.nan], "b": (math.inf, True, "x")}) == {
        "a": [1.0, None],
        "b": [None, True, "x"],
    }
    words = ["/usr/bin/python", "--out=/a/b/c.json", "--set", "loss.horizon=3", "/a/python -m x --repo=/p/q"]
    cut = ["python", "--out=c.json", "--set", "loss.horizon=3", "python -m x --repo=q"]
    assert record.portable(words) == cut


def test_the_last_record_is_found_among_other_output():
    assert record.last_record('{"a": 1}\n{"a": 2}\n{torn\n3\nbye') == {"a": 2}
    assert record.last_record("bye") is None


@pytest.mark.parametrize("kind", ["--hidden=8", "--discrete"])
def test_updates_drq_measures_the_learner_alone(kind):
    """FLOPs grow with the batch, whatever form of the encoder runs."""
    small = "--size=20 --frames=2 --channels=4 --hidden=8 --actions=2 --repeats=2 --block=1 --policy_calls=3"
    found, more = (run("benchmarks.updates_drq", *small.split(), kind, f"--batch={n}") for n in (2, 3))
    assert len(found["update_s"]) == 2 and found["discrete"] == (kind == "--discrete")
    assert 1.4 < more["flops_per_update"] / found["flops_per_update"] < 1.51
    for name in ("updates_per_s", "cpu_s_per_update", "temp_mib", "policy_ms", "peak_rss_mib"):
        assert found[name] > 0, name
