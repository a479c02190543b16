"""Puts a run together from its config: which learner, which feed, and where the environments step."""

import concurrent.futures
import dataclasses
from typing import Any

import jax

from jaxrl import learners, plan, runtime
from jaxrl.config import Config, ConfigError, show, to_dict
from jaxrl.envs.base import CheckedEnv
from jaxrl.envs.batch import Batched
from jaxrl.envs.hosted import Hosted
from jaxrl.evaluation import eval_envs
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.ring import check_budget
from jaxrl.feeds.transitions import TransitionReplay
from jaxrl.parts import Feed, Parts
from jaxrl.placement import Placement, check_devices
from jaxrl.programs import Programs
from jaxrl.runtime import Machine
from jaxrl.saving import Saved
from jaxrl.types import Key, Learner, Spaces


def assemble(config: Config, machine: Machine, env: CheckedEnv, saved: Saved | None = None) -> Parts:
    """Learner, replay and key; nothing is allocated.

    Args:
      config: without "auto".
      saved: the checkpoint that the run continues from.

    Raises:
      ConfigError: if replay does not fit its budget, or the environments cannot step where they should.
    """
    learner = traced_once(learners.make(config, env.spaces))
    if learner.update:
        check_devices(machine.layout, config.batch_size)
    smallest = feed_of(config, learner, env.spaces, 1).window
    share = config.replay.holdout if learner.validate else 0.0
    rows = max(plan.ring_rows(config), saved.rows if saved else 0) if learner.update else smallest
    # Sized by the share, which chance may exceed: it can wrap early, and a ring that has wrapped cannot grow.
    held_rows = (saved.held_rows if saved else 0) or max(smallest, int(rows * share) + 1)
    replay = feed_of(config, learner, env.spaces, rows)
    held = feed_of(config, learner, env.spaces, held_rows, online=False) if share else None
    budget = int(config.replay.budget_gb * 1e9) or machine.memory // 2
    if config.replay.placement == "device" and machine.layout.divides(config.env.num_envs):
        budget *= machine.count  # each holds a share
    check_budget(replay, held.nbytes if held else 0, budget, config.replay.placement)
    refuse_alone(config, machine)
    key = run_key(config, machine)
    return Parts(
        config=config,
        learner=learner,
        replay=replay,
        held=held,
        batched=batched_of(config, env),
        machine=machine,
        eval_envs=eval_envs(config),
        key=key,
    )


def run_key(config: Config, machine: Machine) -> Key:
    """The run's key, on the learner's devices."""
    layout = machine.layout
    if layout.processes == 1:
        return jax.device_put(jax.random.key(config.seed), layout.whole)
    numbers = jax.device_get(jax.random.key_data(jax.random.key(config.seed)))
    return jax.random.wrap_key_data(layout.put(numbers))


def refuse_alone(config: Config, machine: Machine) -> None:
    """Raises ConfigError at settings that one process alone can follow."""
    alone = {
        "replay.holdout": (config.replay.holdout > 0, "0"),
        "replay.save_episodes": (config.replay.save_episodes, "false"),
        "replay.placement": (config.replay.placement == "host", "device"),
        "eval.samples": (config.eval.samples > 0, "0"),
    }
    for name, (asked, remedy) in alone.items() if machine.hosts.count > 1 else ():
        if asked:
            value = show(to_dict(config)[name])
            raise ConfigError(
                f"{name}={value}: cannot be shared by {machine.hosts.count} processes; use --{name}={remedy}"
            )


def traced_once(learner: Learner) -> Learner:
    """The same functions, which jax remembers for the shapes of their arguments.

    What comes out is asked for several times before anything is compiled, and tracing an update takes
    seconds. Inlined, they leave no mark in a program.
    """
    remembered = dataclasses.replace(learner, init=jax.jit(learner.init, inline=True))
    if learner.update is None:
        return remembered
    return dataclasses.replace(remembered, update=jax.jit(learner.update, inline=True))


def feed_of(config: Config, learner: Learner, spaces: Spaces, rows: int, online: bool | None = None) -> Feed:
    """Replay with room for `rows` of each environment, of what the learner takes."""
    sizes: dict[str, Any] = dict(
        spaces=spaces,
        latents=jax.eval_shape(learner.latent_zeros),
        streams=config.env.num_envs,
        rows=rows,
        batch=config.batch_size,
    )
    if learner.horizon:
        return TransitionReplay(**sizes, horizon=learner.horizon)
    return Replay(
        **sizes,
        length=config.batch_length,
        context=learner.context,
        online=config.replay.online if online is None else online,
    )


def compiled(parts: Parts, env: CheckedEnv) -> Programs:
    """The programs of a run, and of its environments if they are JAX programs too.

    Raises:
      ConfigError: if one of them needs more memory than there is.
    """
    config, there = parts.config, runtime.device_memory(parts.machine.learner)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        judges = parts.machine.layout.own(parts.eval_envs)
        job = pool.submit(memory_of, env, judges.stop - judges.start if config.eval_every else 0)
        programs = Programs(parts)
        need = job.result()
    parts.machine.hosts.gather(None)  # gloo gives the others half a minute to come to the first exchange
    sizes = {name: program.demand.scratch for name, program in programs.compiled.items()}
    name = max(sizes, key=lambda name: sizes[name])
    if sizes[name] > there:
        sequences = config.agent != "drq"
        length = f", batch_length={config.batch_length}" if sequences else ""
        lower = "them, --env.num_envs or --model.size" if sequences else "it, --env.num_envs or --env.size"
        raise ConfigError(
            f"batch_size={config.batch_size}{length}: {name} needs "
            f"{sizes[name] / 1e9:.1f} GB and the {parts.machine.platform} has {there / 1e9:.1f} GB; "
            f"lower {lower}"
        )
    there -= parts.replay.nbytes // Placement(parts).groups if config.replay.placement == "device" else 0
    if need > there:
        fits = config.env.num_envs * max(0, there) // need
        remedy = f"--env.num_envs={fits}" if fits else "a smaller --replay.capacity or --env.size"
        raise ConfigError(
            f"env.num_envs={config.env.num_envs}: a step of them needs {need / 1e9:.1f} GB and beside replay "
            f"{there / 1e9:.1f} GB are left; use {remedy}"
        )
    return programs


def memory_of(env: CheckedEnv, judges: int) -> int:
    """Bytes that a step of the environments takes, 0 on the host. Compiles them, and those of evaluations.

    Args:
      judges: environments of an evaluation.
    """
    if not isinstance(env, Hosted):
        return 0
    if judges:
        env.programs_of(judges)  # on one device, where evaluations step them
    return max(demand.whole for demand in env.programs.demands.values())


def needs_host(config: Config) -> str | None:
    """The setting that needs every row on the host, if there is one."""
    needs = {
        "replay.holdout": config.replay.holdout > 0,
        "replay.save_episodes": config.replay.save_episodes,
        "replay.placement": config.replay.placement == "host",
        "overlap": config.overlap,
    }
    return next((name for name, needed in needs.items() if needed), None)


def stepping(parts: Parts) -> str:
    """For the banner: where physics is stepped; "" where there is no choice."""
    if parts.batched:
        return "on the device, with the learner"
    if parts.config.task.startswith(("mjx_", "playground_")):
        return f"row by row through the host ({needs_host(parts.config) or 'env.placement'})"
    return ""


def batched_of(config: Config, env: CheckedEnv) -> Batched | None:
    """The environments, if the loop is to be on the device with them; None: their rows come to the host.

    Raises:
      ConfigError: env.placement=device together with what needs the rows on the host.
    """
    wish, need = config.env.placement, needs_host(config)
    if wish == "device":
        why = f"{need} needs every row on the host" if need else f"{config.task} steps on the host"
        if need or not isinstance(env, Hosted):
            raise ConfigError(f"env.placement=device: {why}; use --env.placement=auto")
    physics = isinstance(env, Hosted) and env.batched.env.is_physics
    if isinstance(env, Hosted) and (wish == "device" or (wish == "auto" and physics and not need)):
        return env.batched
    return None
