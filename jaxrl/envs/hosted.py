"""A device environment as a HostEnv: compiled steps of N environments, reset automatically.

The whole state is one pytree of arrays, so that `snapshot` and `restore` continue exactly, bit for bit. Where
the loop itself is on the device, it steps through `advance`, and no row comes to the host.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrl.demand import Demand
from jaxrl.envs.base import CheckedEnv, DeviceEnv, Outcome, Seed, env_seeds
from jaxrl.envs.batch import Batched, EnvCarry, Spread, Told, is_key
from jaxrl.layout import Layout, fetched
from jaxrl.runtime import compiler_options
from jaxrl.types import Step


class Hosted(CheckedEnv):
    """N copies of one device environment on one device.

    Transfers are explicit, so it works under `jax.transfer_guard("disallow")`.

    Args:
      env: hashable; equal environments share the compiled step.
      action_repeat: steps for which an action is held; rewards are summed, an end cuts it short.
      time_limit: env_steps after which an episode is cut, last but not terminal; 0 = none.
      device: where they live; by default the CPU, for physics the first accelerator.
    """

    def __init__(
        self,
        env: DeviceEnv,
        *,
        num_envs: int,
        seed: Seed,
        action_repeat: int = 1,
        time_limit: int = 0,
        device: jax.Device | None = None,  # pyright: ignore[reportInvalidTypeForm]
    ):
        super().__init__(env.spaces, num_envs=num_envs, action_repeat=action_repeat)
        self.batched = Batched(env=env, action_repeat=action_repeat, time_limit=time_limit)
        device = device or jax.local_devices(backend=None if env.is_physics else "cpu")[0]
        self._layout, self._total = Layout((device,)), num_envs
        self._seeds = env_seeds(seed, num_envs)
        self._carry: EnvCarry | None = None
        self._step: Step | None = None  # of the newest row, on the device

    @property
    def bad(self) -> int | None:
        """Episodes given up so far since their state was not finite; waits for the newest row."""
        if self._carry is None or not self.batched.env.is_physics:
            return None
        return int(fetched(self._carry.bad).sum())

    @property
    def programs(self) -> "EnvPrograms":
        """What is compiled, at the first call; equal environments in equal number share it."""
        return self.programs_of(self._total)

    def programs_of(self, n: int) -> "EnvPrograms":
        """The same for another number of them, such as an evaluation's."""
        return compiled(self.batched, n, self._layout)

    def place(self, layout: Layout, n: int) -> None:
        """Moves the environments to devices, and divides them where their number allows it."""
        now = self._numbers()
        self._layout, self._total = layout, n
        self.replace(*self._from_numbers(now))

    def advance(self, action: jax.Array) -> Told:
        """One step of all environments, enqueued: nothing of it comes to the host.

        Args:
          action: as for `send`, on the device; not checked.
        """
        programs = self.programs
        carry, step = programs.advance(self._carry, action)
        step, told = programs.show(carry, step)
        self.replace(carry, step)
        return told

    def replace(self, carry: EnvCarry, step: Step) -> None:
        """Takes what a loop on the device made of `current`."""
        self._carry, self._step = carry, step

    @property
    def current(self) -> tuple[EnvCarry, Step]:
        """State and newest rows, on the device."""
        if self._carry is None or self._step is None:
            raise RuntimeError("no row yet: reset() first")
        return self._carry, self._step

    def _start(self) -> Step:
        carry, step = self.programs.begin(self._put(self._seeds))
        self.replace(carry, self.programs.show(carry, step)[0])
        return self._fetch()

    def _launch(self, action: np.ndarray) -> None:
        self.advance(self._put(action))

    def _collect(self) -> Step:
        return self._fetch()

    def _stop(self) -> None:
        self._carry = self._step = None

    def snapshot(self) -> Any:
        """Pytree of numpy arrays; take it between `recv` and `send`."""
        self._check_open()
        if self._pending or self._carry is None:
            raise RuntimeError("snapshot() needs a received row: call it after reset() or recv()")
        return self._numbers()

    def restore(self, snapshot: Any) -> Step:
        """Continues from `snapshot`; returns its newest row again.

        Raises:
          ValueError: the snapshot is not of this environment and number of environments.
        """
        self._check_open()
        if self._pending:
            self.recv()
        numbers = jax.eval_shape(_keys_to_numbers, _shapes_of(self.batched, self.num_envs))
        if _shapes(snapshot) != _shapes(numbers):
            raise ValueError("snapshot of another environment, number of environments or version")
        self.replace(*self._from_numbers(snapshot))
        return self._fetch()

    def _numbers(self) -> Any:
        return fetched(_keys_to_numbers(self.current))

    def _from_numbers(self, numbers: Any) -> Any:
        return _numbers_to_keys(self._put(numbers), _shapes_of(self.batched, self.num_envs))

    def _put(self, tree: Any) -> Any:
        return self._layout.put_rows(tree, self._total)

    def _fetch(self) -> Step:
        carry, step = self.current
        told = {k: x for k, x in carry.state.info.items() if k == "success"}  # not of every task
        step, told = fetched((step, told))
        self._outcome = Outcome(step.reward, step.is_last, told["success"] > 0 if told else None)
        return step


@dataclasses.dataclass(frozen=True)
class EnvPrograms:
    """The compiled functions of N environments: those of Batched, pictures apart from physics.

    The state that `advance` takes and the rows that `show` takes are donated.
    """

    begin: Callable[..., tuple[EnvCarry, Step]]
    advance: Callable[..., tuple[EnvCarry, Step]]
    show: Callable[..., tuple[Step, Told]]
    demands: dict[str, Demand]  # of memory; of those two that a step calls


@functools.cache
def compiled(batched: Batched, n: int, layout: Layout) -> EnvPrograms:
    """Compiles the functions of N environments. Physics has options that would slow the pictures down."""
    options = compiler_options(layout.devices[0].platform) if batched.env.is_physics else {}
    place, there = layout.rows(n), batched.on(layout, n)

    def shaped(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    seeds = shaped(jax.ShapeDtypeStruct((n,), np.uint32))
    carry, step = shaped(jax.eval_shape(batched.begin, seeds))
    space = batched.env.spaces.action
    action = shaped(jax.ShapeDtypeStruct((n, *space.shape), space.dtype))
    show = functools.partial(_show, there)
    traced = [
        (jax.jit(there.begin, out_shardings=place).lower(seeds), options),
        (jax.jit(there.advance, out_shardings=place, donate_argnums=0).lower(carry, action), options),
        (jax.jit(show, out_shardings=place, donate_argnums=1).lower(carry, step), {}),
    ]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        programs = list(pool.map(lambda x: x[0].compile(compiler_options=x[1]), traced))
    begin, advance, show = programs
    demands = {"advance": Demand.of(advance), "show": Demand.of(show)}
    return EnvPrograms(begin, advance, show, demands)


def _shapes_of(batched: Batched, n: int) -> tuple[EnvCarry, Step]:
    """State and newest rows, as ShapeDtypeStructs."""
    carry, step = jax.eval_shape(batched.begin, jax.ShapeDtypeStruct((n,), np.uint32))
    return carry, jax.eval_shape(batched.shown, carry, step)


def _show(batched: Batched | Spread, carry: EnvCarry, step: Step) -> tuple[Step, Told]:
    step = batched.shown(carry, step)
    return step, batched.told(carry, step)


def _keys_to_numbers(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def _numbers_to_keys(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if is_key(y) else x, tree, like)


def _shapes(tree: Any) -> tuple[Any, list[tuple[tuple[int, ...], np.dtype]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(tuple(x.shape), np.dtype(x.dtype)) for x in leaves]
