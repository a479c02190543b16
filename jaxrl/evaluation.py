"""Episodes of the current policy on environments of its own. Touches nothing of the training."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jaxrl import envs, keys
from jaxrl.config import Config
from jaxrl.programs import Programs
from jaxrl.tracker import Finished, Tracker
from jaxrl.types import Key, Params


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
    programs: Programs,
    policy: Params,
    key: Key,
    env_steps: int,
    stop: Callable[[], bool] = lambda: False,
) -> Report:
    """Runs exactly `eval_eps` episodes with parameters `policy`, a pure function of its arguments.

    Each environment plays a fixed share of the episodes: taking the first to finish would favour short ones.

    Raises:
      Interrupted: as soon as `stop` answers True.
    """
    n = eval_envs(config)
    quota = config.eval_eps // n + (np.arange(n) < config.eval_eps % n)
    seed = keys.env_seed(config.seed, keys.EVAL, env_steps)
    env = envs.make(config.task, config.env, num_envs=n, seed=seed)
    try:
        step, tracker, found = env.reset(), Tracker.zero(n), []
        # Counted from the seed, so that no two evaluations draw the same noise.
        carry, counter = programs.eval_carry(), programs.put(np.int32(seed))
        while True:
            tracker, finished = tracker.advanced(step, *env.outcome)
            found += [x for x in finished if x.episode < quota[x.env]]
            if len(found) == config.eval_eps:
                return Report(summary(found), found)
            if stop():
                raise Interrupted
            out, counter = programs.eval_act(policy, carry, counter, programs.put(step), key)
            carry = out.carry
            env.send(jax.device_get(out.action))
            step = env.recv()
    finally:
        env.close()


def summary(episodes: list[Finished]) -> dict[str, float]:
    scores = np.array([x.score for x in episodes])
    return {
        "eval_episode/avg_score": float(scores.mean()),
        "eval_episode/std_score": float(scores.std()),
        "eval_episode/min_score": float(scores.min()),
        "eval_episode/max_score": float(scores.max()),
        "eval_episode/length": float(np.mean([x.length for x in episodes])),
        "eval_episode/episodes": float(len(episodes)),
    }
