"""One step of each phase of a run, to see that they work and what the process needs for them."""

import gc

import jax
import numpy as np

from jaxrl import envs, onboard, runtime, saving
from jaxrl.envs.base import CheckedEnv
from jaxrl.layout import fetched
from jaxrl.memory import Process
from jaxrl.parts import Due, Parts
from jaxrl.programs import Programs


def rehearsed(parts: Parts, programs: Programs, env: CheckedEnv) -> Process:
    """Does one step of each phase; what the process holds after that, with an evaluation's environments."""
    highest, config = runtime.peak_memory(), parts.config
    own = parts.machine.layout.own(parts.eval_envs)
    judged, n = envs.judged(config.env), own.stop - own.start
    judges = envs.make(config.task, judged, num_envs=n, seed=0, first=own.start)
    try:
        one_step_each(parts, programs, env)
        if config.eval_every:
            one_judged_step(parts, programs, judges)
        gc.collect()
        runtime.give_back_memory()
        return Process(runtime.resident_memory(), highest)
    finally:
        judges.close()


def one_step_each(parts: Parts, programs: Programs, env: CheckedEnv) -> None:
    """Acting, a step of the environments, insertion, an update, a flush."""
    state = saving.fresh_state(programs, parts.config.env.num_envs)
    step = programs.put_step(env.reset())
    if "chunk" in programs.compiled:
        onboard.one_row(parts, programs, env, saving.fresh_state(programs, parts.config.env.num_envs))
        step = programs.put_step(env.reset())
    out, _ = programs.act(state.policy, state.carry, state.counter, step)
    held = np.zeros(parts.config.env.num_envs, bool) if parts.held else None
    ring, _ = programs.insert((state.ring, state.held), step, out, held)
    env.send(fetched(out.action))
    env.recv()
    totals = state.totals
    if parts.learner.update is not None:
        _, _, totals, _, _ = programs.learn(state.learner, ring, totals, state.evidence, Due(1, 0, 0))
    jax.device_get(totals)


def one_judged_step(parts: Parts, programs: Programs, judges: CheckedEnv) -> None:
    """Acting and a step in the environments of an evaluation."""
    policy, step = programs.policy(programs.init()), programs.put_rows(judges.reset())
    counter = programs.put(np.int32(0))
    out, _ = programs.eval_act(policy, programs.eval_carry(), counter, step, parts.key)
    judges.send(fetched(out.action))
    judges.recv()
