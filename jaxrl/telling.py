"""What a run says of itself: at its start, in run.json, and at its end."""

import pathlib

import jax

from jaxrl import assembly, plan, rundir, runtime
from jaxrl.config import Config
from jaxrl.exits import WriteFailed
from jaxrl.parts import Parts
from jaxrl.placement import Placement
from jaxrl.programs import Programs
from jaxrl.sinks import Sinks
from jaxrl.start import Start
from jaxrl.state import Counters


def finished(config: Config, counters: Counters) -> bool:
    """The last step was made, and its row and evaluation too."""
    return counters.settled == plan.clock_of(config).steps


def banner(parts: Parts, run_dir: rundir.RunDir | None, start: Start | None) -> list[str]:
    """Lines for the start: what the run is and what it will do."""
    config, machine, facts = parts.config, parts.machine, {}
    if run_dir and start:
        facts["run"] = str(run_dir.path) + start.words
    facts["device"] = f"{machine.kind} ({machine.platform}){shared_by(parts)}"
    if parts.learner.update is not None:
        params = jax.eval_shape(parts.learner.init, parts.key).params
        count = sum(x.size for x in jax.tree.leaves(params))
        size = "" if config.agent == "drq" else f"{config.model.size}, "
        facts["model"] = f"{size}{count:,} parameters, {config.model.compute_dtype}"
    if where := assembly.stepping(parts):
        facts["stepping"] = where
    return plan.banner(config, plan.Plan.of(config), parts.replay, facts)


def shared_by(parts: Parts) -> str:
    """For the banner: how several devices share the work; "" for one."""
    count, place, n = parts.machine.count, Placement(parts), parts.machine.hosts.count
    if count == 1:
        return ""
    each = f"{parts.config.batch_size // count} of each batch"
    each = f"in {n} processes: {each}" if n > 1 else each
    if place.split:
        return f" x {count}: {each}"
    if place.groups == 1:
        return f" x {count}: {each}; replay whole on each, since env.num_envs is no multiple of {count}"
    return f" x {count}: {each}, {parts.replay.streams // count} environments and their replay"


def say_goodbye(
    run_dir: rundir.RunDir, config: Config, sinks: Sinks, c: Counters, home: pathlib.Path | None = None
) -> None:
    """Notes how the run ended. Raises WriteFailed if rows were lost.

    `home`: what --logdir names, if it is another folder.
    """
    done = finished(config, c)
    reason = "done" if done else "stopped"
    run_dir.note(exit=reason, ended=rundir.now(), wall_s=c.wall_s, env_steps=c.env_steps, updates=c.updates)
    sinks.note(f"{reason} at step {c.env_steps:,} after {c.updates:,} updates: {run_dir.path}")
    if not done and config.checkpoint.enabled:
        sinks.note(f"to continue: the same command with --logdir={home or run_dir.path}")
    sinks.close(hurried=not done)  # tries once more what could not be written before
    if sinks.lost:
        raise WriteFailed(f"metrics were lost ({sinks.failure or sinks.lost}); free disk space")


def describe(parts: Parts, programs: Programs, compile_s: float) -> dict[str, object]:
    """For run.json: where and with what the run computes."""
    machine = parts.machine
    return {
        "versions": runtime.versions(),
        "device": {"platform": machine.platform, "kind": machine.kind, "count": machine.count},
        "processes": machine.hosts.count,
        "compile_s": round(compile_s, 3),  # with tracing; programs are compiled side by side
        "compile_s_each": {name: round(x.seconds, 3) for name, x in programs.compiled.items()},
    }
