"""A run at a glance: what a line of a list says, without parsing all of its rows."""

import dataclasses
import pathlib
import re
import statistics
import time
from typing import Any

from jaxrl import rundir
from jaxrl.reading import LARGEST_LINE, ROWS, SCORES, Past, is_number, last_lines, parsed
from jaxrl.runs import text

SCORE = "eval_episode/avg_score"
SUCCESS = "eval_episode/success_rate"
TRAINED = "episode/score"
EPISODES = 100  # training episodes of a score, as in the table of a run's terminal
TAIL = 2**18  # bytes of scores.jsonl: some 2,500 episodes, evaluations among them
MARK = b'"eval_episode/avg_score":'
VALUE = re.compile(MARK + rb"\s*(-?[0-9.eE+-]+)")
ENDS = ("done", "stopped")  # with counters in run.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glance:
    """A line of a list. None: not known, or the run has none."""

    name: str  # path below the folder that is listed
    path: str
    id: str | None
    state: str
    reason: str | None  # of a failure
    task: str
    agent: str
    preset: str | None
    size: str | None
    seed: int | None
    step: int | None  # env_steps
    steps: int | None  # env_steps of the whole run
    agent_steps: int | None
    updates: int | None
    episodes: int | None
    score: float | None  # mean of the last training episodes
    score_episodes: int  # how many those are
    eval_score: float | None  # of the last evaluation
    eval_step: int | None
    eval_success_rate: float | None
    best_score: float | None  # the highest of all evaluations
    best_step: int | None
    wall_s: float | None
    started: str | None
    ended: str | None
    age_s: float | None  # since it began
    starts: int
    host: str | None
    device: str | None
    commit: str | None


@dataclasses.dataclass(frozen=True)
class Outline:
    """Rows of a metrics.jsonl; empty where there is none."""

    last: dict[str, Any]
    evaluated: dict[str, Any]  # the last one with an evaluation
    best: dict[str, Any]  # that of the highest score, the later one if there are two


def outline(past: Past) -> Outline:
    """Goes through all bytes but parses three lines: 300 runs are to be listed within a second."""
    last = evaluated = best = b""
    highest = float("-inf")
    try:
        with open(past.path / ROWS, "rb") as stream:
            while line := stream.readline(LARGEST_LINE):
                if not line.endswith(b"}\n"):
                    continue  # torn
                last = line
                if MARK in line and (found := VALUE.search(line)):
                    evaluated = line
                    if (value := float_of(found[1])) >= highest:
                        highest, best = value, line
    except OSError:
        return Outline({}, {}, {})
    return Outline(parsed(last) or past.last_row(), parsed(evaluated) or {}, parsed(best) or {})


def float_of(digits: bytes) -> float:
    try:
        return float(digits)
    except ValueError:
        return float("-inf")


def last_scores(past: Past) -> list[float]:
    """Scores of the last training episodes, at most EPISODES, the last one first."""
    found = []
    for line in last_lines(past.path / SCORES, TAIL):
        if b'"episode/score"' in line and (row := parsed(line)) and is_number(row.get(TRAINED)):
            found.append(row[TRAINED])
            if len(found) == EPISODES:
                break
    return found


def glance(past: Past, name: str) -> Glance:
    """Args: name: of the run, as it is listed."""
    rows, scores, state, note = outline(past), last_scores(past), past.state, past.note
    counters = rows.last | ({"step": note.get("env_steps")} if ended_with(past, state, "env_steps") else {})
    counters |= {key: note[key] for key in ("updates", "wall_s") if ended_with(past, state, key)}
    agent = text.clean(past.config.get("agent", "?"))
    starts = rundir.list_of_dicts(note.get("starts"))
    began = text.moment(started(past))
    device = note.get("device")
    git = note.get("git")
    return Glance(
        name=text.clean(name),
        path=str(past.path),
        id=words(note.get("id")),
        state=state,
        reason=words(note.get("exit")) if state == "failed" else None,
        task=text.clean(past.task),
        agent=agent,
        preset=words(note.get("config")),
        size=words(past.config.get("model.size")) if agent == "dreamer" else None,
        seed=past.seed,
        step=integer(counters.get("step")),
        steps=integer(past.config.get("steps")),
        agent_steps=integer(counters.get("agent_steps")),
        updates=integer(counters.get("updates")),
        episodes=integer(counters.get("episodes")),
        score=text.finite(statistics.fmean(scores)) if scores else None,
        score_episodes=len(scores),
        eval_score=text.finite(rows.evaluated.get(SCORE)),
        eval_step=integer(rows.evaluated.get("step")),
        eval_success_rate=text.finite(rows.evaluated.get(SUCCESS)),
        best_score=text.finite(rows.best.get(SCORE)),
        best_step=integer(rows.best.get("step")),
        wall_s=text.finite(counters.get("wall_s")),
        started=started(past),
        ended=words(note.get("ended")),
        age_s=max(0.0, round(time.time() - began.timestamp(), 3)) if began else None,
        starts=len(starts),
        host=words((starts[-1] if starts else note).get("host")),
        device=words(device.get("kind")) if isinstance(device, dict) else None,
        commit=words(git.get("commit")) if isinstance(git, dict) else None,
    )


def ended_with(past: Past, state: str, key: str) -> bool:
    """Whether run.json has a counter of the run's end; the one of an earlier end counts no more."""
    return state in ENDS and text.finite(past.note.get(key)) is not None


def started(past: Past) -> str | None:
    return words(past.note.get("started"))


def words(value: Any) -> str | None:
    return text.clean(value) if isinstance(value, str) and value else None


def integer(value: Any) -> int | None:
    number = text.finite(value)
    return None if number is None else int(number)


def name_below(path: pathlib.Path, root: pathlib.Path) -> str:
    """Its path below a folder; its own name if it is that folder."""
    return str(path.relative_to(root)) if path != root else path.name
