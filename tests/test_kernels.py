"""Launches of a GPU program, counted in its text."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import h200, hlo

ROOT = pathlib.Path(__file__).parents[1]
BACKEND = 'backend_config={"fusion_backend_config":{"kind":"__triton"}}'
PROGRAM = """\
HloModule jit_update, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %negate.1 = f32[8]{0} negate(%p)
}

%inner_body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s = (s32[], f32[8]{0}) parameter(0)
  %x.1 = f32[8]{0} get-tuple-element(%s), index=1
  %a.1 = f32[8]{0} fusion(%x.1), kind=kLoop, calls=%fused
  ROOT %t.1 = (s32[], f32[8]{0}) tuple(%s, %a.1)
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %s.1 = (s32[], f32[8]{0}) parameter(0)
  %x.2 = f32[8]{0} get-tuple-element(%s.1), index=1
  %a.2 = (f32[8]{0}, f32[8]{0}) fusion(%x.2), kind=kLoop, calls=%fused
  %dot.1 = f32[8]{0} custom-call(%x.2, %x.2), custom_call_target="__cublas$gemm"
  %while.9 = (s32[], f32[8]{0}) while(%s.1), condition=%test, body=%inner_body, KNOWN3
  ROOT %t.2 = (s32[], f32[8]{0}) tuple(%s.1, %a.2)
}

%test (s: (s32[], f32[8])) -> pred[] {
  %s.2 = (s32[], f32[8]{0}) parameter(0)
  ROOT %less = pred[] compare(%s.2, %s.2), direction=LT
}

%called (p: f32[8]) -> f32[8] {
  %p.1 = f32[8]{0} parameter(0)
  ROOT %copy.1 = f32[8]{0} copy(%p.1)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %constant.1 = f32[] constant(1)
  %view = f32[2,4]{1,0} bitcast(%x)
  %fusion.1 = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused, BACKEND
  %call.1 = f32[8]{0} call(%fusion.1), to_apply=%called
  %while.1 = (s32[], f32[8]{0}) while(%t), condition=%test, body=%body, KNOWN5
  ROOT %last = f32[8]{0} fusion(%call.1), kind=kLoop, calls=%fused
}
""".replace("BACKEND", BACKEND)
for times in ("3", "5"):
    PROGRAM = PROGRAM.replace(f"KNOWN{times}", f'backend_config={{"known_trip_count":{{"n":"{times}"}}}}')


def test_bodies_of_loops_count_as_often_as_they_turn():
    found = hlo.count(PROGRAM)
    assert found.outside == 3  # a fusion, the copy that is called, the last fusion; views are free
    assert found.loops == [{"trips": 5, "kernels": 2 + 3}]
    assert found.total == 3 + 5 * 5
    assert found.kinds == {"fusion": 1 + 5 + 15, "__cublas$gemm": 5, "__triton": 1, "copy": 1}
    assert found.host_transfers == 0
    assert found.record()["kernels"] == 28


@pytest.mark.parametrize(
    "line",
    [
        "%o = token[] outfeed(%x, %token)",
        '%o = f32[8]{0} custom-call(%x), custom_call_target="xla_ffi_python_gpu_host_callback"',
        "%o = f32[8]{0:S(5)} copy(%x)",
        "%o = f32[8]{0} conditional(%p, %x, %x), branch_computations={%fused, %fused}",
    ],
)
def test_waiting_for_the_host_is_seen(line):
    where = "%constant.1 = f32[] constant(1)"
    assert hlo.count(PROGRAM.replace(where, line)).host_transfers == 1


def test_a_loop_of_unknown_length_asks_the_host():
    text = PROGRAM.replace('backend_config={"known_trip_count":{"n":"5"}}', "")
    found = hlo.count(text)
    assert found.host_transfers == 1
    assert found.loops == [{"trips": 1, "kernels": 5 + 1}]  # the comparison is a launch then


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        hlo.count("module @jit_f { }")


def test_the_chip_is_described_in_full():
    text = h200.description()
    assert text.count("{") == text.count("}") == 3
    assert "core_count: 132\n" in text and 'name: "NVIDIA H200"\n' in text


def test_a_missing_assembler_is_one_line_with_the_remedy(tmp_path):
    with pytest.raises(LookupError, match=r"no ptxas in .*/bin.*pip install 'jaxrl\[kernels\]'"):
        h200.toolkit(str(tmp_path))


def run(*words):
    command = [sys.executable, "-m", "benchmarks.kernels", *words]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ.copy(), capture_output=True, text=True, check=False
    )


PLUGIN = importlib.util.find_spec("jax_cuda13_plugin") is not None


@pytest.mark.skipif(PLUGIN, reason="the plugin is installed")
def test_a_missing_plugin_is_one_line_with_the_remedy():
    done = run("--size=debug")
    assert done.returncode == 1 and done.stdout == ""
    remedy = "pip install 'jaxrl[kernels]'"
    assert done.stderr.splitlines() == [
        f"error: jax-cuda13-plugin is not installed, which compiles for NVIDIA GPUs: {remedy}"
    ]


@pytest.mark.skipif(not PLUGIN, reason="needs the packages of jaxrl[kernels]")
@pytest.mark.parametrize("words", ["--length=5", "--length=5 --members=2", "--policy"])
def test_a_program_for_a_gpu_that_is_not_there(words):
    done = run("--size=debug", "--batch=2", "--set", "loss.horizon=3", *words.split())
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["host_transfers"] == 0
    assert found["kernels"] == found["outside"] + sum(x["trips"] * x["kernels"] for x in found["loops"]) > 0
    trips = [x["trips"] for x in found["loops"]]
    assert trips == ([] if "--policy" in words else [5, 3, 5])
    assert found["members"] == (2 if "members" in words else 1)
