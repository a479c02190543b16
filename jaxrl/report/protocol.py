"""What a run of Atari-100k scored by the two protocols in use, and whether it kept to the rules."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from jaxrl import rundir
from jaxrl.config import Value, show
from jaxrl.reading import Past
from jaxrl.report.foreign import LARGEST_STEP, Curve, is_score

STEPS = 400_000  # env_steps of the benchmark
WINDOW = 10_000  # env_steps in whose training episodes DreamerV3 is scored
ENOUGH = 100  # episodes of an evaluation at the end
# Settings that change what is measured, as configs/atari100k.py pins them. What an agent makes of a frame or
# of a lost life is its own affair: a score is of a whole game, with raw rewards, whatever it does.
RULES: Mapping[str, Value] = {
    "env.action_repeat": 4,
    "env.sticky": 0.0,
    "env.full_actions": False,
    "env.noops": 30,
    "env.fire_reset": False,
    "env.time_limit": 108_000,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run by one protocol."""

    task: str
    seed: int | None
    name: str  # of the run
    score: float | None  # mean over episodes; None: there is none that counts
    episodes: int = 0
    step: int = 0  # env_steps at the end of what was counted
    is_last: bool = True  # False: the run went on after that


@dataclasses.dataclass(frozen=True)
class Protocol:
    """A way to score a run."""

    name: str
    score: Callable[[Past], Outcome]
    is_cut: bool  # whether a longer run counts, by its first STEPS


def evaluated(past: Past) -> Outcome:
    """The evaluation of the final policy that has the most episodes, by command or the run's own.

    One of an earlier policy, such as the best, was chosen by its scores: of those only the run's own last
    evaluation counts, if there is no other, and `is_last` is False.
    """
    end = reached(past)
    found = [(True, len(scores), end, scores) for scores in by_command(past, end)]
    own = [(x["step"], x["eval_episode/score"]) for x in past.scores if "eval_episode/score" in x]
    if own:
        step = max(step for step, _ in own)
        scores = [score for at, score in own if at == step and is_score(score)]
        found.append((step >= end, len(scores), step, scores))
    is_last, episodes, step, scores = max(found, key=lambda x: x[:2], default=(True, 0, end, []))
    score = statistics.fmean(scores) if scores else None
    return Outcome(past.task, past.seed, past.name, score, episodes, step, is_last)


def by_command(past: Past, end: int) -> list[list[float]]:
    """Scores of the episodes of each file in evaluations/ about the policy at `end`, the newest first."""
    found = []
    for file in sorted((past.path / "evaluations").glob("*.json"), reverse=True):
        step = file.name.partition("-")[0]
        if not (step.isascii() and step.isdigit() and end <= int(step[:16])):
            continue
        try:
            record = rundir.read_json(file)
        except (OSError, ValueError) as error:
            past.remarks.append(f"{file}: cannot be read and was left out ({error})")
            continue
        games = rundir.list_of_dicts(record.get("episodes"))
        scores = [game["score"] for game in games if is_score(game.get("score"))]
        if record.get("task") == past.task and scores:
            found.append(scores)
    return found


def trained(past: Past) -> Outcome:
    """The mean of training episodes that end in the last WINDOW env_steps of the run, or of the benchmark."""
    ended = [(x["step"], x["episode/score"]) for x in past.scores if is_score(x.get("episode/score"))]
    score, episodes = windowed(ended, end := min(reached(past), STEPS))
    return Outcome(past.task, past.seed, past.name, score, episodes, end)


def trained_abroad(curves: Sequence[Curve]) -> tuple[list[Outcome], tuple[str, ...]]:
    """`trained` of the curves of one group of peers, and their departures.

    How long their runs were is judged by the last episode of all: the last one of a run may not have ended.
    """
    longest = max((step for curve in curves for step in curve.steps[-1:]), default=0)
    is_whole = longest >= STEPS - WINDOW
    end = STEPS if is_whole else longest
    outcomes = []
    for curve in curves:
        score, episodes = windowed(zip(curve.steps, curve.scores, strict=True), end)
        name = f"{curve.task} seed {curve.seed}"
        outcomes.append(Outcome(curve.task, curve.seed, name, score, episodes, end))
    return outcomes, () if is_whole else (f"steps={longest:_}",)


def windowed(ended: Iterable[tuple[float, float]], end: int) -> tuple[float | None, int]:
    """Mean and number of the episodes, (env_steps, score), that ended in the last WINDOW up to `end`."""
    scores = [score for step, score in ended if end - WINDOW <= step <= end]
    return (statistics.fmean(scores) if scores else None), len(scores)


EVALUATED = Protocol(f"{ENOUGH} evaluation episodes at the end", evaluated, is_cut=False)
TRAINED = Protocol("training return of episodes that end in the last 10k frames", trained, is_cut=True)
PROTOCOLS = (EVALUATED, TRAINED)


def reached(past: Past) -> int:
    """env_steps that a run has come to by its last row."""
    step = past.last_row().get("step", 0)
    return int(step) if 0 <= step <= LARGEST_STEP else 0


def departures(past: Past, protocol: Protocol) -> tuple[str, ...]:
    """What makes a run no run of the benchmark, such as ("steps=600",); () if nothing does."""
    config, found = past.config, []
    steps = config.get("steps")
    if not isinstance(steps, int):
        found.append("steps unknown")
    elif steps < STEPS or (steps > STEPS and not protocol.is_cut):
        found.append(f"steps={show(steps)}")
    broken = [key for key, value in RULES.items() if config.get(key, value) != value]
    found += [f"{key}={show(config[key])}" for key in broken]
    if config.get("init_from"):
        found.append("begun with trained parameters")
    if reached(past) < min(steps if isinstance(steps, int) else STEPS, STEPS):
        found.append("unfinished")
    return tuple(found)
