"""What every environment shares: the checked half of a HostEnv, and the DeviceEnv convention.

A HostEnv (jaxrl/types.py) is numpy in, numpy out. `CheckedEnv` holds what is the same for all of them:
actions are checked before they reach a backend and rows before they leave it, turns are kept (send, recv,
send, ...), and `outcome` says what a score counts. A DeviceEnv is pure JAX, one environment, no batch
axis; `hosted.Hosted` turns it into a HostEnv.
"""

import abc
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import struct

from jaxrl.exits import Diverged
from jaxrl.faults import OFF, Faults
from jaxrl.layout import Layout
from jaxrl.types import Continuous, Discrete, Key, Spaces, Step


class Outcome(NamedTuple):
    """What a score counts, of the row that was received last.

    The same as the row's reward and `is_last`, except where the learner is shown something else than
    the game: clipped rewards, or a lost life as the end of an episode (Atari).
    """

    reward: np.ndarray  # [N] f32, unclipped, of the whole game
    is_over: np.ndarray  # [N] bool, the game is over (a lost life is not) or was cut by a time limit
    success: np.ndarray | None = None  # [N] bool, it had succeeded when it ended; None: not defined


class BadRow(Diverged):
    """An environment gave a number that is not finite."""

    def __init__(self, key: str, env: int, value: float, row: dict[str, np.ndarray]):
        """`row` is that of all N, leaves [N, ...], in which environment `env` of the run gave `value`."""
        super().__init__(f"{key} of environment {env} is {value}, must be finite")
        self.key, self.env, self.value, self.row = key, env, value, row


class CheckedEnv(abc.ABC):
    """A HostEnv but for its backend, which subclasses provide as `_start`, `_launch`, `_collect`, `_stop`."""

    faults: Faults = OFF
    first: int = 0  # number of the first of these environments in the run; others may be in other processes

    def __init__(self, spaces: Spaces, *, num_envs: int, action_repeat: int):
        self.spaces = spaces
        self.num_envs = num_envs
        self.action_repeat = action_repeat
        self._outcome: Outcome | None = None
        self._pending = False
        self._closed = False

    def place(self, layout: Layout, n: int) -> None:
        """Moves environments that are on a device to these; those on the host stay. n: in all processes."""
        del layout, n

    @property
    def bad(self) -> int | None:
        """Episodes given up so far since a simulator's numbers were not finite; None: it has none such."""
        return None

    @property
    def outcome(self) -> Outcome:
        """What a score counts, of the newest row."""
        if self._outcome is None:
            raise RuntimeError("no row yet: reset() first")
        return self._outcome

    def reset(self) -> Step:
        """Starts all N episodes, whatever was going on; every row is `is_first`. Raises BadRow."""
        self._check_open()
        if self._pending:
            self._collect()
            self._pending = False
        return self._checked(self._start())

    def send(self, action: np.ndarray) -> None:
        """Starts one step of all N environments and returns before they have stepped.

        Args:
          action: [N] integers in [0, n), or [N, A] floats in [-1, 1]. Copied: the caller may reuse it.

        Raises:
          ValueError: naming what is wrong with the action; nothing was stepped.
          RuntimeError: before `reset`, after `close`, or when the previous step was not received.
        """
        self._check_open()
        if self._pending:
            raise RuntimeError("send() twice: recv() the previous step first")
        if self._outcome is None:
            raise RuntimeError("send() before reset()")
        self._launch(check_action(action, self.spaces.action, self.num_envs))
        self._pending = True

    def recv(self) -> Step:
        """Waits for the step that `send` started.

        Raises:
          BadRow: a reward or a floating observation is not finite; nobody gets to see that row.
        """
        self._check_open()
        if not self._pending:  # a backend would wait for ever
            raise RuntimeError("recv() without send()")
        self._pending = False
        return self._checked(self._collect())

    def _checked(self, step: Step) -> Step:
        if self.faults.armed:
            step = with_faults(step, self.faults)
        row = {f"obs.{key}": x for key, x in step.obs.items()}
        row |= {"reward": step.reward, "raw_reward": self.outcome.reward}
        for key, x in row.items():
            if x.dtype.kind == "f" and not np.isfinite(x).all():
                where = tuple(np.argwhere(~np.isfinite(x))[0].tolist())
                flags = {k: getattr(step, k) for k in ("is_first", "is_last", "is_terminal")}
                raise BadRow(key, self.first + where[0], float(x[where]), row | flags)
        return step

    def snapshot(self) -> Any | None:
        """None: this backend cannot save its state; a resumed run begins new episodes."""
        return None

    def restore(self, snapshot: Any) -> Step:
        del snapshot
        raise RuntimeError(f"{type(self).__name__} cannot restore a state; call reset() instead")

    def close(self) -> None:
        """Frees the backend. A second call does nothing."""
        if self._closed:
            return
        if self._pending:  # a pool that is freed while it steps may never return
            self._collect()
        self._pending, self._closed = False, True
        self._stop()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this environment was closed")

    @abc.abstractmethod
    def _start(self) -> Step: ...

    @abc.abstractmethod
    def _launch(self, action: np.ndarray) -> None: ...

    @abc.abstractmethod
    def _collect(self) -> Step: ...

    @abc.abstractmethod
    def _stop(self) -> None: ...


def with_faults(step: Step, faults: Faults) -> Step:
    """The row with the NaNs that are to be injected into it."""
    reward, obs = step.reward, step.obs
    if faults.bad("reward"):
        reward = np.full_like(reward, np.nan)
    if faults.bad("obs"):
        obs = {k: np.full_like(x, np.nan) if x.dtype.kind == "f" else x for k, x in obs.items()}
    return step.replace(reward=reward, obs=obs)


def check_action(action: np.ndarray, space: Discrete | Continuous, num_envs: int) -> np.ndarray:
    """A fresh contiguous copy of `action` with the space's dtype.

    EnvPool does not check: a wrong length aborts the process, NaN or INT_MAX kill it with a
    segmentation fault, and other numbers out of range are read beyond the action table in silence.

    Args:
      action: [N] of any integer dtype, or [N, A] of any float dtype.

    Raises:
      ValueError: wrong type, dtype, shape, a number that is not finite or out of bounds.
    """
    shape = (num_envs, *space.shape)
    kinds, name = ("iu", "integers") if isinstance(space, Discrete) else ("f", "floats")
    if not isinstance(action, np.ndarray):
        raise ValueError(f"action must be a numpy array of {name} {list(shape)}, got {type(action).__name__}")
    if action.dtype.kind not in kinds or action.shape != shape:
        raise ValueError(f"action must be {name} {list(shape)}, got {action.dtype} {list(action.shape)}")
    if isinstance(space, Discrete):
        if action.min() < 0 or action.max() >= space.legal:
            where = int(np.flatnonzero((action < 0) | (action >= space.legal))[0])
            raise ValueError(f"action[{where}]={action[where]} is outside [0, {space.legal})")
    elif not (np.abs(action) <= 1).all():  # written so that NaN fails too
        where = tuple(int(i) for i in np.argwhere(~(np.abs(action) <= 1))[0])
        raise ValueError(f"action{list(where)}={action[where]} is not finite or outside [-1, 1]")
    return np.array(action, space.dtype, order="C")


class From(NamedTuple):
    """A seed of more environments than are here: those before number `first` are in other processes."""

    seed: int
    first: int


Seed = int | From


def env_seeds(seed: Seed, num_envs: int) -> np.ndarray:
    """[N] u32 in [0, 2^31): seed of each environment.

    Not `seed + i`, which would make environment 1 of seed 0 the same as environment 0 of seed 1.
    Environment i has the same seed whatever N is.
    """
    seed, first = seed if isinstance(seed, From) else From(seed, 0)
    return np.random.SeedSequence(seed).generate_state(first + num_envs, np.uint32)[first:] >> 1


@struct.dataclass(kw_only=True)
class State:
    """State of one device environment, no batch axis. Names are those of Brax and MuJoCo Playground."""

    data: Any  # pytree, the simulator's own: what `step` and `pictures` go on from
    obs: dict[str, jax.Array]  # leaves [...]: what arrived with the reward, but for the pictures
    reward: jax.Array  # [] f32, 0 after reset
    done: jax.Array  # [] f32, 1 where the episode is over, for whatever reason
    metrics: dict[str, jax.Array]  # name -> [] f32
    info: dict[str, jax.Array]
    """[] f32 each. "truncation": 1 where `done` is a time limit, not a terminal state. "success": 1 once
    the episode has succeeded; only where the task defines that."""


class DeviceEnv(Protocol):
    """One environment as pure functions; hashable, since it is a static argument of the compiled step.

    A row's pictures are drawn apart from its physics, once, after repeated actions and resets were dealt
    with, and by a program with other compiler options.
    """

    @property
    def spaces(self) -> Spaces:
        """Of `obs` and `pictures` together."""
        ...

    @property
    def is_physics(self) -> bool:
        """`step` and `reset` are a physics simulation, which is compiled with options of its own."""
        ...

    def reset(self, key: Key) -> State:
        """The first row. Cheap: in a batch it is computed at every step, and thrown away where none ended."""
        ...

    def step(self, state: State, action: jax.Array) -> State:
        """One control step (one env_step). The state's structure, shapes and dtypes do not change."""
        ...

    def pictures(self, state: State) -> dict[str, jax.Array]:
        """Images [h, w, c] u8 of a state; {} if the environment has none, or keeps them in `obs`."""
        ...


class Plain:
    """What a device environment inherits that is neither physics nor has pictures."""

    @property
    def is_physics(self) -> bool:
        return False

    def pictures(self, state: State) -> dict[str, jax.Array]:
        del state
        return {}
