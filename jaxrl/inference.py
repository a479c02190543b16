"""A trained policy in somebody's own program, as `jaxrl.load` gives it. A jax in use stays as it is."""

import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxrl import actor, changes, envs, keys, learners, runtime
from jaxrl.actor import Actor
from jaxrl.config import Config, ConfigError, replace
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import NoCheckpoint
from jaxrl.layout import Layout
from jaxrl.parts import shaped
from jaxrl.runtime import Machine
from jaxrl.sources import Source, compile_all
from jaxrl.stores import Checkpoint
from jaxrl.types import Array, ArraySpec, Carry, Imagined, Learner, Params, Spaces, Step

Obs = Mapping[str, Array] | Array


@dataclasses.dataclass(frozen=True)
class Manner:
    """How a policy is to act."""

    device: str = "auto"
    mode: str | None = None  # "sample" or "mode"; None: as the run evaluates
    seed: int = 0


@struct.dataclass(kw_only=True)
class Memory:
    """What a policy knows of N environments beside their newest obs. A value: a call makes a new one."""

    carry: Carry  # the learner's own, leaves [N, ...]
    first: Array  # [N] bool, the next obs begins an episode
    counter: jax.Array  # [] i32, goes up by one with each call; decides with the seed about what is drawn
    imagined: bool = struct.field(pytree_node=False, default=False)  # of an imagined obs


class Policy:
    """Actions for observations: `action, carry = policy(obs, carry)`.

    Compiled once for each number N, and for each horizon of `imagine`; what is compiled is kept.

    config: of the run. task, spaces: what it was trained on; obs and actions are checked against these.
    step: env_steps that it had been trained for. checkpoint: the folder that it comes from.
    """

    def __init__(self, found: Checkpoint, config: Config, machine: Machine, seed: int):
        """Of a checkpoint and its config without "auto". Raises as `jaxrl.load` does."""
        self.config, self.task, self.step, self.checkpoint = config, config.task, found.step, found.folder
        try:
            self.spaces: Spaces = actor.spaces_of(found.manifest, config)
        except ConfigError as error:
            raise ConfigError(f"{found.folder}: {error}") from error
        self._found, self._machine, self._start = found, machine, seed_of(seed)
        self._actors: dict[int, tuple[Actor, Memory, Step]] = {}
        self._dreams: dict[tuple[int, int], Any] = {}
        with self._undisturbed():
            self._key = jax.device_put(jax.random.key(seed), machine.learner)
            self._learner: Learner = learners.make(config, self.spaces)
            like = jax.eval_shape(self._learner.policy_params, actor.state_of(self._learner))
            self._params: Params = actor.policy_of(found, shaped(like, machine.learner))

    def __repr__(self) -> str:
        kind = f"{self.config.agent}, {self.config.eval.mode}, {self._machine.platform}"
        return f"Policy({self.task}, step {self.step:,}, {kind}, {str(self.checkpoint)!r})"

    def __call__(self, obs: Obs, carry: Memory | None = None) -> tuple[np.ndarray, Memory]:
        """What to do, and what to remember until the next obs.

        Args:
          obs: as in `spaces.obs` or, where it has one key, only the array; of one environment, or of N with
            an axis in front. The newest frames as the environment shows them: stacking is done here. Images
            u8, vectors any float.
          carry: as the call before returned it; None where episodes begin.

        Returns:
          Action i32 or f32 in [-1, 1] as numpy, with an axis of environments if obs has it; a carry.
          The same arguments give the same.

        Raises:
          ValueError: obs or carry is not of this shape or type.
        """
        rows, alone = self._rows(obs)
        n = len(next(iter(rows.values())))
        act, memory, blank = self._acting(n)
        if carry is not None:
            memory = checked(carry, n)
            if memory.imagined:
                raise ValueError("carry is an imagined one; give the one that policy(obs, carry) returned")
        first = np.asarray(memory.first)
        step = dataclasses.replace(blank, obs=act.put(rows))  # nothing else to transfer within an episode
        if first.any():
            step = dataclasses.replace(step, is_first=act.put(first))
        try:
            out, counter = act.eval_act(self._params, memory.carry, memory.counter, step, self._key)
        except TypeError as error:  # all but the carry has been looked at
            raise ValueError("carry is not one of this policy") from error
        after = Memory(carry=out.carry, first=np.zeros(n, bool), counter=counter)
        action = np.array(jax.device_get(out.action))  # the caller's own, to write to
        return (action[0] if alone else action), after

    def reset(self, carry: Memory | None, where: Any = True) -> Memory | None:
        """The carry for a next obs that begins an episode where `where` ([N] bool, or one for all) is true.

        Noise is drawn anew then; with a carry of None each episode has the same.
        """
        if carry is None:
            return None
        n, where = len(carry.first), np.asarray(where)
        if where.dtype != bool or where.shape not in ((), (n,)):
            raise ValueError(f"where is {told(where)}, expected bool[] or bool[{n}]")
        return dataclasses.replace(carry, first=np.asarray(carry.first) | where)

    def imagine(self, carry: Memory, actions: Array) -> Imagined:
        """What the world model expects to come of actions, from the obs on that `carry` comes from.

        Args:
          carry: of a call of the policy, whose own action is not done, or of another imagination.
          actions: [H, N] i32 or [H, N, A] f32; without N if the carry is of one environment.

        Returns:
          Leaves [H, N, ...] or [H, ...] as numpy; see jaxrl.types.Imagined.

        Raises:
          ValueError: no world model was learned; a carry or actions that cannot be.
          NoCheckpoint: the networks for it, which the first call reads, were removed by the run since.
        """
        if self._learner.imagine is None:
            raise ValueError(f"agent={self.config.agent} has no world model to imagine with")
        memory = checked(carry, None)
        n = len(memory.first)
        if np.asarray(memory.first).any():
            raise ValueError("carry was reset: the policy must see the first obs of the new episode before")
        actions, alone = self._plan(actions, n)
        params = self._params | self._dreamers
        program = self._dreaming(params, len(actions), n)
        out, counter = program(params, memory.carry, actions, memory.counter, self._key)
        seen = jax.device_get(out.replace(carry=None))
        if alone:
            seen = jax.tree.map(lambda x: x[:, 0], seen)
        after = dataclasses.replace(memory, carry=out.carry, counter=counter, imagined=True)
        return seen.replace(carry=after)

    def make_env(self, num_envs: int = 1, seed: int = 0) -> CheckedEnv:
        """N environments of the task with the run's settings, as its evaluations have them.

        `reset` and `recv` give a Step with leaves [N, ...], `send` takes actions [N, ...]; the row after one
        with `is_last` is the first of the next episode. The same seed gives the same episodes.

        Raises:
          ConfigError: the task is not there any more.
        """
        env = envs.judged(self.config.env)
        return envs.make(self.task, env, num_envs=num_envs, seed=seed_of(seed))

    def _acting(self, n: int) -> tuple[Actor, Memory, Step]:
        """For n environments: the programs, a carry before the first row, a row without obs."""
        if n not in self._actors:
            with self._undisturbed():
                act = Actor(self.config, self.spaces, n, self._machine, donate=False)
                first, counter = np.ones(n, bool), act.put(np.int32(self._start))
                memory = Memory(carry=act.eval_carry(), first=first, counter=counter)
                reward, flags = act.put((np.zeros(n, np.float32), np.zeros(n, bool)))
                blank = Step(obs={}, reward=reward, is_first=flags, is_last=flags, is_terminal=flags)
            self._actors[n] = act, memory, blank
        return self._actors[n]

    @functools.cached_property
    def _dreamers(self) -> Params:
        """Parameters for imagining, beside those of acting."""
        if not self.checkpoint.exists():
            raise NoCheckpoint(f"{self.checkpoint}: was removed since it was loaded; load the run again")
        with self._undisturbed():
            return actor.imagining_of(self._found, self._learner, self._machine.learner)

    def _dreaming(self, params: Params, horizon: int, n: int) -> Any:
        """The program that imagines so many steps."""
        imagine = self._learner.imagine
        assert imagine

        def program(params, carry, actions, counter, key):
            return imagine(params, carry, actions, keys.key_for(key, keys.REPORT, counter)), counter + 1

        if (horizon, n) not in self._dreams:
            with self._undisturbed():
                space = self.spaces.action
                actions = jax.ShapeDtypeStruct((horizon, n, *space.shape), space.dtype)
                number, carry = jax.ShapeDtypeStruct((), jnp.int32), self._acting(n)[1].carry
                arguments = shaped((params, carry, actions, number, self._key), self._machine.learner)
                source = Source(program, arguments)
                found = compile_all({"imagine": source}, self._machine.platform)["imagine"]
            self._dreams[horizon, n] = found.call
        return self._dreams[horizon, n]

    def _rows(self, obs: Obs) -> tuple[dict[str, Array], bool]:
        """Observations with leaves [N, ...], and whether they came without that axis. Raises ValueError."""
        specs = self.spaces.obs
        if not isinstance(obs, Mapping):
            if len(specs) > 1 or not hasattr(obs, "shape"):
                kind = type(obs).__name__
                raise ValueError(f"obs is a {kind}, expected a dict with the keys {', '.join(specs)}")
            obs = {next(iter(specs)): obs}
        if wrong := sorted(obs.keys() ^ specs.keys()):
            state = "missing" if wrong[0] in specs else "unknown"
            raise ValueError(f"obs[{wrong[0]!r}] is {state}, expected the keys {', '.join(specs)}")
        found = {name: row(f"obs[{name!r}]", obs[name], spec) for name, spec in specs.items()}
        counts = {name: x.shape[: x.ndim - len(specs[name].shape)] for name, x in found.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"obs[{name!r}] {list(x)}" for name, x in counts.items())
            raise ValueError(f"obs has different axes of environments in front: {shown}")
        alone = not next(iter(counts.values()))
        return {name: x[None] if alone else x for name, x in found.items()}, alone

    def _plan(self, actions: Array, n: int) -> tuple[np.ndarray, bool]:
        """Actions [H, N, ...], and whether they came without that axis. Raises ValueError."""
        space, actions = self.spaces.action, np.asarray(actions)
        alone = n == 1 and actions.ndim == 1 + len(space.shape)
        plan = actions[:, None] if alone else actions
        if plan.ndim < 2 or not len(plan) or plan.shape[1:] != (n, *space.shape):
            tail = ", ".join(str(x) for x in (n, *space.shape))
            raise ValueError(f"actions are {told(actions)}, expected {space.dtype}[H, {tail}] with H >= 1")
        flat = envs.check_action(plan.reshape(-1, *space.shape), space, plan.shape[0] * n)
        return flat.reshape(plan.shape), alone

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Whatever the surrounding program has set, what is traced here is traced as in the run."""
        precision = self.config.runtime.matmul_precision
        with (
            jax.enable_x64(False),
            jax.default_prng_impl("threefry2x32"),
            jax.default_matmul_precision(None if precision == "default" else precision),
        ):
            yield


def load(run: str, which: str, manner: Manner, early: bool) -> Policy:
    """See jaxrl.load.

    Args:
      early: jax was not imported before, so that it may be configured as the run had it.
    """
    found = actor.chosen(run, which, actor.readable)
    try:
        config, notes = changes.saved_config(found.manifest["config"])
    except ConfigError as error:
        raise ConfigError(f"{found.folder}: its saved config cannot be used: {error}") from error
    for line in [*found.remarks, *notes]:
        warnings.warn(line, stacklevel=3)
    settings = {"device": manner.device} | ({} if manner.mode is None else {"eval.mode": manner.mode})
    config = replace(config, settings)
    machine = runtime.start(config) if early else there(manner.device)
    return Policy(found, runtime.resolve(config, machine), machine, manner.seed)


def there(device: str) -> Machine:
    """The first device of that kind in a process whose jax is in use already.

    Raises:
      ConfigError: it has none.
    """
    default = next(iter(jnp.zeros(()).devices()))
    try:
        found = default if device in ("auto", default.platform) else jax.local_devices(backend=device)[0]
    except RuntimeError as error:
        raise ConfigError(
            f"device={device}: jax was imported before, and has only {default.platform}; "
            "import jaxrl and load first, or leave the device out"
        ) from error
    return Machine(Layout((found,)), found, found.platform, found.device_kind)


def seed_of(seed: int) -> int:
    """What environments and the counter of actions begin with, as in a trial. Raises ConfigError."""
    if seed < 0:
        raise ConfigError(f"seed={seed}: must be 0 or more")
    return keys.env_seed(seed, keys.TRIAL, 0)


def checked(carry: Any, n: int | None) -> Memory:
    """A carry of n environments (None: of any number). Raises ValueError."""
    if not isinstance(carry, Memory):
        raise ValueError(f"carry is a {type(carry).__name__}, expected what policy(obs, carry) returned")
    if n is not None and len(carry.first) != n:
        raise ValueError(f"carry is of {len(carry.first)} environments, obs of {n}")
    return carry


def row(name: str, x: Any, spec: ArraySpec) -> Array:
    """An observation of one environment or several, as the spec wants it. Raises ValueError."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    kind = x.dtype == spec.dtype or (spec.dtype.kind == "f" and x.dtype.kind == "f")
    extra = x.ndim - len(spec.shape)
    if not kind or extra not in (0, 1) or x.shape[extra:] != spec.shape or 0 in x.shape[:extra]:
        inner = ", ".join(map(str, spec.shape))
        raise ValueError(f"{name} is {told(x)}, expected {spec.dtype}[{inner}] or {spec.dtype}[N, {inner}]")
    return x if x.dtype == spec.dtype else x.astype(spec.dtype)


def told(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"
