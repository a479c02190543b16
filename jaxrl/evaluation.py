"""Episodes of the current policy on environments of its own. Touches nothing of the training."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxrl import envs, keys
from jaxrl.config import Config
from jaxrl.envs.base import CheckedEnv
from jaxrl.tracker import Finished, Tracker
from jaxrl.types import ActOutput, Carry, Key, Params, Step


class Actor(Protocol):
    """The programs of acting in the evaluation environments: those of a run (Programs), or fewer."""

    def put(self, tree: Any) -> Any: ...

    def put_rows(self, step: Step) -> Step: ...

    def eval_carry(self) -> Carry: ...

    def eval_act(
        self, policy: Params, carry: Carry, counter: jax.Array, step: Step, key: Key
    ) -> tuple[ActOutput, jax.Array]: ...


class Watcher(Protocol):
    """Looks on while episodes are played, and changes nothing."""

    def row(self, env: CheckedEnv, step: Step, found: Sequence[Finished]) -> None:
        """The newest row of all environments, and the episodes that have ended so far."""
        ...

    def acts(self, action: np.ndarray) -> None:
        """What is done next, [N, ...]."""
        ...


@dataclasses.dataclass(frozen=True)
class Report:
    scalars: dict[str, float]
    episodes: list[Finished]  # in the order in which they finished; exactly eval_eps


class Interrupted(Exception):
    """The evaluation was given up because the run is to end."""


def eval_envs(config: Config) -> int:
    """Environments of an evaluation; never more than episodes."""
    return min(config.eval_eps, config.eval.num_envs or 8)


def evaluate(
    config: Config,
    programs: Actor,
    policy: Params,
    key: Key,
    env_steps: int,
    stop: Callable[[], bool] = lambda: False,
    *,
    quota: np.ndarray | None = None,
    watchers: Sequence[Watcher] = (),
) -> Report:
    """Runs exactly `eval_eps` episodes with parameters `policy`, a pure function of its arguments.

    Args:
      quota, watchers: see `play`.

    Raises:
      Interrupted: as soon as `stop` answers True.
    """
    seed = keys.env_seed(config.seed, keys.EVAL, env_steps)
    found = play(config, programs, policy, (key, seed), stop, quota=quota, watchers=watchers)
    return Report(summary(found), found)


def shares(config: Config) -> np.ndarray:
    """[N] episodes of each environment: taking the first to finish would favour short ones."""
    n = eval_envs(config)
    return config.eval_eps // n + (np.arange(n) < config.eval_eps % n)


def one_episode(config: Config) -> np.ndarray:
    """[N] of which environment 0 alone plays one."""
    return (np.arange(eval_envs(config)) == 0).astype(int)


def play(
    config: Config,
    programs: Actor,
    policy: Params,
    chance: tuple[Key, int],
    stop: Callable[[], bool] = lambda: False,
    *,
    quota: np.ndarray | None = None,
    watchers: Sequence[Watcher] = (),
) -> list[Finished]:
    """Plays episodes; a pure function of its arguments, whoever watches.

    Args:
      config: task, environments, and how many episodes.
      chance: key of the actions, seed of the environments.
      quota: [N] episodes of each environment; by default, of `eval_eps` a fixed share.

    Returns:
      The episodes, in the order in which they finished.

    Raises:
      Interrupted: as soon as `stop` answers True.
    """
    key, seed = chance
    game = playing(config, seed, stop, quota=quota, watchers=watchers)
    # Counted from the seed, so that no two evaluations draw the same noise.
    carry, counter = programs.eval_carry(), programs.put(np.int32(seed))
    with contextlib.closing(game):
        try:
            while True:
                step = next(game)
                assert step is not None
                out, counter = programs.eval_act(policy, carry, counter, programs.put_rows(step), key)
                carry = out.carry
                game.send(jax.device_get(out.action))
        except StopIteration as end:
            return end.value


Game = Generator[Step | None, np.ndarray, list[Finished]]


def playing(
    config: Config,
    seed: int,
    stop: Callable[[], bool] = lambda: False,
    *,
    quota: np.ndarray | None = None,
    watchers: Sequence[Watcher] = (),
) -> Game:
    """The environments' half of `play`: `next` waits for their newest row, `send` takes actions and returns
    at once. Returns the episodes; raises Interrupted.
    """
    quota = shares(config) if quota is None else quota
    n = len(quota)
    env = envs.make(config.task, envs.judged(config.env), num_envs=n, seed=seed)
    try:
        step, tracker, found = env.reset(), Tracker.zero(n), []
        while True:
            tracker, finished = tracker.advanced(step, *env.outcome)
            found += [x for x in finished if x.episode < quota[x.env]]
            for watcher in watchers:
                watcher.row(env, step, found)
            if len(found) == quota.sum():
                return found
            if stop():
                raise Interrupted
            action = yield step
            for watcher in watchers:
                watcher.acts(action)
            env.send(action)
            yield None
            step = env.recv()
    finally:
        env.close()


def summary(episodes: list[Finished]) -> dict[str, float]:
    scores = np.array([x.score for x in episodes])
    successes = [x.success for x in episodes if x.success is not None]
    rate = {"eval_episode/success_rate": float(np.mean(successes))} if successes else {}
    return rate | {
        "eval_episode/avg_score": float(scores.mean()),
        "eval_episode/std_score": float(scores.std()),
        "eval_episode/min_score": float(scores.min()),
        "eval_episode/max_score": float(scores.max()),
        "eval_episode/length": float(np.mean([x.length for x in episodes])),
        "eval_episode/episodes": float(len(episodes)),
    }
