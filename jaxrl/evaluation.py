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
from jaxrl.hosts import ALONE, Alone
from jaxrl.layout import fetched
from jaxrl.tracker import Finished, Tracker
from jaxrl.types import ActOutput, Carry, Key, Params, Step

TOGETHER = 16  # rows after which the processes of an evaluation ask each other whether it is over


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


@dataclasses.dataclass(frozen=True)
class Share:
    """Which of an evaluation's environments this process plays in, beside others that play in the rest.

    All of them make the same number of steps, since the programs of acting are one program over all devices:
    whose episodes are over goes on with some that do not count.
    """

    hosts: Alone = ALONE
    first: int = 0  # of the environments
    last: int | None = None  # the first that is not ours

    def is_over(self, mine: bool, rows: int) -> bool:
        """Whether all of them are through, asked after each row."""
        if self.hosts.count == 1:
            return mine
        return rows % TOGETHER == 0 and all(self.hosts.gather(mine))

    def merged(self, found: list[Finished], ends: list[int]) -> list[Finished]:
        """The episodes of all, in the order in which they finished. ends: rows after which ours have."""
        if self.hosts.count == 1:
            return found
        mine = [[end, dataclasses.asdict(x)] for end, x in zip(ends, found, strict=True)]
        games = [(end, Finished(**x)) for part in self.hosts.gather(mine) for end, x in part]
        return [x for _, x in sorted(games, key=lambda pair: (pair[0], pair[1].env))]


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
    share: Share = Share(),
) -> Report:
    """Runs exactly `eval_eps` episodes with parameters `policy`, a pure function of its arguments.

    Args:
      quota, watchers, share: see `play`.

    Raises:
      Interrupted: as soon as `stop` answers True.
    """
    seed = keys.env_seed(config.seed, keys.EVAL, env_steps)
    found = play(config, programs, policy, (key, seed), stop, quota=quota, watchers=watchers, share=share)
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
    share: Share = Share(),
) -> list[Finished]:
    """Plays episodes; a pure function of its arguments, whoever watches.

    Args:
      config: task, environments, and how many episodes.
      chance: key of the actions, seed of the environments.
      quota: [N] episodes of each environment; by default, of `eval_eps` a fixed share.
      share: of the environments, where other processes play in the rest; they call this at the same time.

    Returns:
      The episodes, in the order in which they finished.

    Raises:
      Interrupted: as soon as `stop` answers True.
    """
    key, seed = chance
    game = playing(config, seed, stop, quota=quota, watchers=watchers, share=share)
    # Counted from the seed, so that no two evaluations draw the same noise.
    carry, counter = programs.eval_carry(), programs.put(np.int32(seed))
    with contextlib.closing(game):
        try:
            while True:
                step = next(game)
                assert step is not None
                out, counter = programs.eval_act(policy, carry, counter, programs.put_rows(step), key)
                carry = out.carry
                game.send(fetched(out.action))
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
    share: Share = Share(),
) -> Game:
    """The environments' half of `play`: `next` waits for their newest row, `send` takes actions and returns
    at once. Returns the episodes; raises Interrupted.
    """
    quota = (shares(config) if quota is None else quota)[share.first : share.last]
    n, first = len(quota), share.first
    env = envs.make(config.task, envs.judged(config.env), num_envs=n, seed=seed, first=first)
    try:
        step, tracker, found, ends, rows = env.reset(), Tracker.zero(n), [], [], 0
        while True:
            tracker, finished = tracker.advanced(step, *env.outcome)
            over = [x for x in finished if x.episode < quota[x.env]]
            found += [dataclasses.replace(x, env=x.env + first) for x in over]
            ends += [rows] * len(over)
            for watcher in watchers:
                watcher.row(env, step, found)
            if share.is_over(len(found) == quota.sum(), rows):
                return share.merged(found, ends)
            rows += 1
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
