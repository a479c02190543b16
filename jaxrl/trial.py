"""A trial: the policy of a checkpoint plays episodes that no training has seen; what came of it is kept."""

import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl import changes, envs, keys, rundir, runtime
from jaxrl.actor import Actor, chosen, readable
from jaxrl.config import Config, ConfigError, replace
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.film import reel_of
from jaxrl.evaluation import eval_envs, play, shares
from jaxrl.exits import WriteFailed
from jaxrl.filming import Film
from jaxrl.stores import Checkpoint
from jaxrl.tracker import Finished
from jaxrl.types import Step

Z95 = statistics.NormalDist().inv_cdf(0.975)
PAUSE_S = 5.0  # between lines about the progress of a trial


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wish:
    """What a trial is asked to be."""

    path: str  # of a run, one of its stores or a checkpoint
    episodes: int = 100
    which: str = ""  # "best", "latest" or a step; "" = best, if there is one, else latest
    cameras: tuple[str, ...] = ()  # of the video; () = the task's
    video: int = 0  # episodes of environment 0 that are filmed
    device: str = "auto"
    seed: int = 0
    out: str = ""  # folder; "" = evaluations/ of the run


@dataclasses.dataclass(frozen=True)
class Result:
    """What a trial has found."""

    lines: list[str]  # for a human
    file: pathlib.Path  # JSON, every episode


def hold(wish: Wish, say: Callable[[str], None]) -> Result:
    """Plays the episodes. `say` gets lines about what is done.

    Raises:
      ConfigError: no such run, a task that is not there any more, an unknown camera.
      NoCheckpoint: nothing intact to load.
      WriteFailed: the result.
    """
    found = chosen(wish.path, wish.which, readable, option="--which")
    config, notes = config_of(found, wish)
    for line in [*found.remarks, *notes]:
        say(line)
    machine = runtime.start(config)
    config = runtime.resolve(config, machine)
    seed = keys.env_seed(wish.seed, keys.TRIAL, 0)
    n = eval_envs(config)
    try:
        env = envs.make(config.task, envs.judged(config.env), num_envs=n, seed=seed)
    except ConfigError as error:
        raise ConfigError(f"{shown(found)} of {run_of(found)} cannot be played here: {error}") from error
    env.close()
    film = film_of(config, wish, seed, say)
    folder = out_folder(wish, found)
    say(f"{shown(found)} of {run_of(found)}: {config.task}, {wish.episodes} episodes, {n} at a time")
    actor, began = Actor(config, env.spaces, n, machine), time.monotonic()
    policy, key = actor.load(found), jax.device_put(jax.random.key(wish.seed), machine.learner)
    watchers = [Progress(wish.episodes, say), *([film] if film else [])]
    episodes = play(config, actor, policy, (key, seed), watchers=watchers)
    record = record_of(found, config, wish, episodes)
    record["seconds"] = round(time.monotonic() - began, 3)
    record["device"] = {"platform": machine.platform, "kind": machine.kind}
    stamp = f"{found.step}-{time.strftime('%Y%m%d-%H%M%S')}"
    file = rundir.unused(folder / f"{stamp}.json")
    try:
        rundir.write_json(file, record)
        if film:
            say(film.develop(file.with_suffix(""))[1])
    except OSError as error:
        raise WriteFailed(f"{error.filename or folder}: {error.strerror or error}") from error
    finally:
        if film:
            film.close()
    return Result(table(record), file)


def config_of(found: Checkpoint, wish: Wish) -> tuple[Config, list[str]]:
    """The run's own config with what a trial has otherwise; lines about settings that are gone."""
    try:
        config, notes = changes.saved_config(found.manifest["config"])
    except ConfigError as error:
        raise ConfigError(f"{found.folder}: its saved config cannot be used: {error}") from error
    return replace(config, {"eval_eps": wish.episodes, "device": wish.device}), notes


def film_of(config: Config, wish: Wish, seed: int, say: Callable[[str], None]) -> Film | None:
    """The film, if one is wanted and something can be seen. Raises ConfigError for an unknown camera."""
    if not wish.video:
        return None
    try:
        reel = reel_of(config.task, envs.judged(config.env), seed, wish.cameras)
        if wish.video > (share := int(shares(config)[0])):
            say(f"--video_episodes={wish.video}: environment 0 plays {share} episodes; raise --episodes")
        return Film(reel, min(wish.video, share))
    except ConfigError as error:
        if wish.cameras:
            raise
        say(f"no video: {error}")
        return None


def out_folder(wish: Wish, found: Checkpoint) -> pathlib.Path:
    """Where the result goes; made now, so that no episode is played in vain."""
    folder = rundir.located("--out", wish.out) if wish.out else run_of(found) / "evaluations"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={folder}: {error.strerror}; choose a folder that can be written") from error
    return folder


def run_of(found: Checkpoint) -> pathlib.Path:
    return found.folder.parents[2]


def shown(found: Checkpoint) -> str:
    return f"checkpoint {found.folder.parent.name}/{found.folder.name}"


class Progress:
    """A watcher that tells how far a trial is."""

    def __init__(self, episodes: int, say: Callable[[str], None]):
        self._episodes, self._say, self._told, self._at = episodes, say, 0, time.monotonic()

    def row(self, env: CheckedEnv, step: Step, found: Sequence[Finished]) -> None:
        del env, step
        late = time.monotonic() - self._at > PAUSE_S
        if late and self._told < len(found) < self._episodes:
            self._told, self._at = len(found), time.monotonic()
            mean = statistics.fmean(x.score for x in found)
            self._say(f"{len(found)} of {self._episodes} episodes, mean score {mean:.2f}")

    def acts(self, action: np.ndarray) -> None:
        del action


def record_of(found: Checkpoint, config: Config, wish: Wish, episodes: list[Finished]) -> dict[str, Any]:
    """What is kept in the JSON file: where it comes from, a summary, every episode."""
    ordered = sorted(episodes, key=lambda x: (x.env, x.episode))
    scores, lengths = [x.score for x in ordered], [float(x.length) for x in ordered]
    summary: dict[str, Any] = {"episodes": len(ordered), "score": spread(scores), "length": spread(lengths)}
    judged = [x.success for x in ordered if x.success is not None]
    if judged:
        low, high = wilson(sum(judged), len(judged))
        summary["success"] = {"rate": sum(judged) / len(judged), "low": low, "high": high, "of": len(judged)}
    return {
        "time": rundir.now(),
        "run": found.manifest.get("run"),
        "checkpoint": str(found.folder),
        "step": found.step,
        "task": config.task,
        "agent": config.agent,
        "mode": config.eval.mode,
        "seed": wish.seed,
        "summary": summary,
        "episodes": [{k: v for k, v in dataclasses.asdict(x).items() if v is not None} for x in ordered],
        "versions": runtime.versions(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation (of the values themselves), median, lowest and highest."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.pstdev(values),
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a success rate.

        (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4 n^2)) / (1 + z^2 / n),    p = successes / n

    Source: Wilson 1927; unlike p -+ z sd it is right near 0 and 1, too.
    """
    rate, share = successes / trials, Z95**2 / trials
    half = Z95 * math.sqrt(rate * (1 - rate) / trials + share / trials / 4)
    middle = rate + share / 2
    low, high = ((middle + sign * half) / (1 + share) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def table(record: dict[str, Any]) -> list[str]:
    """The summary for a human."""
    summary = record["summary"]
    names = ("mean", "sd", "median", "min", "max")
    lines = [f"{summary['episodes']} episodes".ljust(14) + "".join(x.rjust(12) for x in names)]
    for what, digits in (("score", 2), ("length", 1)):
        lines.append(what.ljust(14) + "".join(f"{summary[what][x]:,.{digits}f}".rjust(12) for x in names))
    if success := summary.get("success"):
        count = round(success["rate"] * success["of"])
        lines.append(
            f"{'success':14}{success['rate']:12.1%}   {count} of {success['of']}; 95 % interval "
            f"{success['low']:.1%} to {success['high']:.1%} (Wilson)"
        )
    return lines
