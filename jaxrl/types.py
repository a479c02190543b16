"""The words every room shares: a step, a batch, spaces, a learner.

Axes: `B` batch, `T` sequence length, `N` environments, `C` ring capacity in rows, `H` imagination
horizon, `A` actions, `k` updates per call; image axes `h w c`.

Time convention of a row: row t holds `obs_t`; `reward_t` and the flags arrived *with* `obs_t` (so the
reward is 0 where `is_first`); `action_t` was chosen after seeing `obs_t`. `is_last` means that the
episode is over, for whatever reason; `is_terminal` means that the value of this row's obs is zero. A time
limit is last, not terminal. Terminal rows are last, except with `env.lives=discount`, where a lost life
has value zero and the episode goes on.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import struct

Array = jax.Array | np.ndarray
Key = jax.Array  # typed PRNG key, shape []
Params = Any  # pytree of network weights
Carry = Any  # pytree of recurrent state, leaves [N, ...]
Metrics = dict[str, Any]  # name -> accumulator of jaxrl.metrics


@struct.dataclass(kw_only=True)
class Step:
    """What N environments show at one instant. Host environments fill it with numpy arrays."""

    obs: dict[str, Array]  # leaves [N, ...]; images uint8 [N, h, w, c], vectors f32 [N, d]
    reward: Array  # [N] f32, env units, arrived with obs
    is_first: Array  # [N] bool, first row of an episode; the reward is 0 there
    is_last: Array  # [N] bool, the episode ends with this row
    is_terminal: Array  # [N] bool, the value of this row's obs is zero


@struct.dataclass(kw_only=True)
class Batch:
    """Sequences for one update, leaves [T, B, ...]; `T` includes the context rows in front."""

    obs: dict[str, jax.Array]
    action: jax.Array  # [T, B] i32 or [T, B, A] f32 in [-1, 1]
    reward: jax.Array  # [T, B] f32
    is_first: jax.Array  # [T, B] bool
    is_last: jax.Array  # [T, B] bool
    is_terminal: jax.Array  # [T, B] bool
    latents: Any  # pytree, leaves [T, B, ...]: the learner's latents as stored beside each row


@struct.dataclass(kw_only=True)
class Transitions:
    """Transitions of n decisions for one update, leaves [B, ...].

    The n-step window ends with its episode: fewer rewards are summed there.
    """

    obs: dict[str, jax.Array]  # images u8 [B, h, w, stack * c], oldest first; vectors of the newest row
    action: jax.Array  # [B] i32 or [B, A] f32 in [-1, 1]
    reward: jax.Array  # [B] f32, discounted sum of the rewards in the window
    discount: jax.Array  # [B] f32, of the value of next_obs: gamma^n, 0 where it is terminal
    next_obs: dict[str, jax.Array]
    agent_steps: jax.Array  # [] i32, clock of the run when they were drawn, for schedules


@dataclasses.dataclass(frozen=True)
class Horizon:
    """How a learner that takes `Transitions` wants them."""

    stack: int  # rows whose images are shown together; at an episode's start its first row is repeated
    nstep: int
    discount: float  # per decision


@struct.dataclass(kw_only=True)
class Evidence:
    """The batch of the first update of a process that was not finite."""

    number: Array  # [] i32, updates made before that one; -1: none was bad so far
    batch: Batch | Transitions


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape (without the env axis) and dtype of one observation key."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3 and self.dtype == np.uint8

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions are i32 in [0, n)."""

    n: int
    # Where tasks of a population share a set of n actions: how many of them, the first ones, this task has.
    own: int | None = None

    @property
    def legal(self) -> int:
        """Actions in [0, legal) may be taken."""
        return self.n if self.own is None else self.own

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int32)


@dataclasses.dataclass(frozen=True)
class Continuous:
    """Actions are f32 [size] in [-1, 1]; the environment's adapter rescales to its own bounds."""

    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class Spaces:
    obs: dict[str, ArraySpec]
    action: Discrete | Continuous

    @property
    def allowed(self) -> np.ndarray | None:
        """[n] bool, which actions may be taken, where tasks share a set of them; else None."""
        if isinstance(self.action, Continuous) or self.action.own is None:
            return None
        return np.arange(self.action.n) < self.action.own


class HostEnv(Protocol):
    """N environments stepped on the host, numpy in and out, reset automatically.

    `reset` starts all N episodes. The row after an `is_last` row ignores that env's action and
    is the next episode's `is_first` row with reward 0. `send` returns before the environments
    have stepped where the backend allows it, so that work can be done until `recv`. Arrays of
    a returned Step are never written to again by the environment.
    """

    spaces: Spaces
    num_envs: int
    action_repeat: int

    def reset(self) -> Step: ...

    def send(self, action: np.ndarray) -> None:
        """Checks (shape, dtype, bounds, finite) and starts one step; ValueError if bad."""
        ...

    def recv(self) -> Step: ...

    def snapshot(self) -> Any | None:
        """Pytree of numpy arrays that `restore` continues from exactly; None if impossible."""
        ...

    def restore(self, snapshot: Any) -> Step: ...

    def close(self) -> None: ...


class ActOutput(NamedTuple):
    action: jax.Array  # [N] i32 or [N, A] f32
    carry: Carry
    latents: Any  # leaves [N, ...], stored in replay beside the row; () if the learner has none


@struct.dataclass(kw_only=True)
class UpdateOutput:
    state: Any  # same structure, shapes and dtypes as went in
    metrics: Metrics  # constant key set; a learner that skips bad updates counts them as train/opt/skipped
    latents: Any  # leaves [T, B, ...]: refreshed latents of the rows after the context; () if none


@struct.dataclass(kw_only=True)
class OpenLoop:
    """What a world model makes of sequences whose first rows it sees; by image key, u8 [T, B, h, w, c]."""

    truth: dict[str, Array]
    model: dict[str, Array]
    observed: int = struct.field(pytree_node=False)  # rows that it saw; the others follow from actions alone


@struct.dataclass(kw_only=True)
class Imagined:
    """What a world model expects to come of H actions in each of N environments."""

    obs: dict[str, Array]  # [H, N, ...] after each action, as in the spaces: images u8, vectors f32
    reward: Array  # [H, N] f32 that arrives with obs, as it was learned: its sign with env.clip_reward
    continuation: Array  # [H, N] f32, probability that obs is not terminal, given that none before is
    carry: Carry  # after the last action; for `imagine`, not for `act`: no action is chosen there yet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """An algorithm: pure functions, none of them jitted, none of them aware of devices.

    init(key) -> state, whose field `allowed` is that of the spaces
    initial_carry(n) -> carry of n environments
    act(params, carry, step, key, mode) -> ActOutput; mode is "train", "sample" or "mode" (static)
    update(state, batch, key) -> UpdateOutput, or None where nothing is learned
    policy_params(state) -> params for `act`
    validate(state, batch, key) -> metrics of a held-out batch, without learning; optional
    explain(state, batch, key) -> the numbers of such an update, to find what was not finite; optional. A
      flat dict: loss/<name>, grad/<path>, param/<path>, and batch.<leaf> where bits are stored, not floats
    report(state, batch, key) -> OpenLoop of up to six sequences of a batch; None without a model of images
    imagine(params, carry, actions, key) -> Imagined, a world model's; actions [H, N] i32 or [H, N, A] f32
    imagine_params(state) -> what `imagine` needs beside policy_params(state): both are dicts of networks, its
      params are their union. Like policy_params it only selects from the state.
    latent_zeros() -> pytree of one row's stored latents (no env axis), for sizing the ring
    """

    init: Callable[..., Any]
    initial_carry: Callable[[int], Carry]
    act: Callable[..., ActOutput]
    policy_params: Callable[[Any], Params]
    latent_zeros: Callable[[], Any]
    update: Callable[..., UpdateOutput] | None = None
    validate: Callable[..., Metrics] | None = None
    explain: Callable[..., dict[str, jax.Array]] | None = None
    report: Callable[..., OpenLoop] | None = None
    imagine: Callable[..., Imagined] | None = None
    imagine_params: Callable[[Any], Params] | None = None
    context: int = 0  # rows in front of a sampled sequence that only provide the initial carry
    horizon: Horizon | None = None  # None: batches are sequences (Batch); else Transitions
