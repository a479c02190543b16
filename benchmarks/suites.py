"""The suites of benchmarks.run: which benchmarks each consists of, and with which words, in two sizes.

Imports neither jax nor numpy.
"""

import dataclasses
from collections.abc import Mapping

SMALL, FULL = "small", "full"
SCALES = (SMALL, FULL)
SIZES = ("12m", "50m", "200m")  # of the world model on an accelerator
OF_RUN = "updates"  # the suite that is measured at the settings of a run


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of a benchmark, in a process of its own."""

    module: str
    small: str  # words of its command line
    full: str | None = None  # None: the same
    on: str = "any"  # "cpu" or "accelerator": measured there only, at full size

    def words(self, scale: str) -> list[str]:
        return (self.small if scale == SMALL or self.full is None else self.full).split()


@dataclasses.dataclass(frozen=True)
class Suite:
    what: str
    cases: Mapping[str, Case]


UPDATES = "--batch=16 --length=64 --repeats=5"
SUITES: Mapping[str, Suite] = {
    "envs": Suite(
        "steps of environments: physics on the device, Atari on the host",
        {
            "physics": Case(
                "benchmarks.env_steps",
                "--tasks cartpole_balance --parts physics step --num_envs 64 --seconds 0.2 --windows 3",
                "--num_envs 64 256 1024 --windows 3",
            ),
            "adapter": Case(
                "benchmarks.envs",
                "--cases rgb64 --num_envs 1 8 --seconds 0.05 --windows 7",
                "--num_envs 1 8 32",
            ),
        },
    ),
    "render": Suite(
        "pictures of the arm: our ray caster against OpenGL",
        {
            "caster": Case(
                "benchmarks.render",
                "--cameras wrist --num_envs 16 --seconds 0.1 --windows 5",
                "--num_envs 16 256",
            )
        },
    ),
    "replay": Suite(
        "rows into replay and batches out of it, against a plain copy",
        {"ring": Case("benchmarks.replay", "--seconds 0.05 --windows 5", "--capacity=50000")},
    ),
    "updates": Suite(
        "updates of the world model and of DrQ; with --run, those of that run",
        {
            "1m": Case(
                "benchmarks.updates", "--size=1m --batch=4 --length=32", f"--size=1m {UPDATES}", on="cpu"
            ),
            **{
                size: Case("benchmarks.updates", "", f"--size={size} {UPDATES}", on="accelerator")
                for size in SIZES
            },
            "drq": Case(
                "benchmarks.updates_drq",
                "--batch=32 --size=48 --channels=16 --hidden=256",
                "--batch=256",
            ),
        },
    ),
    "population": Suite(
        "updates of several members of a population: jointly, in turn, and alone",
        {
            "members": Case(
                "benchmarks.population",
                "--size=debug --batch=4 --length=8 --members 2 --windows=3",
                f"--size=1m {UPDATES.replace('repeats', 'windows')} --members 2 4",
                on="cpu",
            ),
            "eight": Case(
                "benchmarks.population",
                "",
                f"--size=12m {UPDATES.replace('repeats', 'windows')} --members 4 8",
                on="accelerator",
            ),
        },
    ),
    "devices": Suite(
        "how an update is divided over devices, and what they send each other",
        {
            "cpu": Case("benchmarks.devices", "--counts 1 2 --windows=3", "--counts 1 2 4 8", on="cpu"),
            "accelerators": Case(
                "benchmarks.devices",
                "",
                "--counts 1 2 4 8 --size=12m --batch=16 --length=64",
                on="accelerator",
            ),
        },
    ),
    "train": Suite(
        "a run from end to end, and where its time goes: preset debug, or Pong",
        {
            "run": Case("benchmarks.smoke", "--config=debug --updates=0 --caches cold", "--caches cold warm"),
        },
    ),
}


def cases(name: str, scale: str, platform: str, run: str | None) -> dict[str, tuple[str, list[str]]]:
    """{case: (module, words)} of a suite on a platform.

    Args:
      scale: SMALL or FULL.
      run: directory of a run, whose own updates are measured instead.
    """
    if run and name == OF_RUN:
        return {"run": ("benchmarks.updates", [f"--run={run}"])}
    kind = "cpu" if platform == "cpu" else "accelerator"
    fits = ("any", kind) if scale == FULL else ("any", "cpu")
    return {
        key: (case.module, case.words(scale)) for key, case in SUITES[name].cases.items() if case.on in fits
    }


def listing() -> str:
    """What there is, and which commands it consists of."""
    lines = []
    for name, suite in SUITES.items():
        lines.append(f"{name:8} {suite.what}")
        for case in suite.cases.values():
            for scale in SCALES:
                if scale == FULL or case.on != "accelerator":
                    where = f", on a{'n' * (case.on != 'cpu')} {case.on}" if case.on != "any" else ""
                    where = where if scale == FULL else ""
                    lines.append(f"         {scale + where}: {' '.join([case.module, *case.words(scale)])}")
    return "\n".join(lines)
