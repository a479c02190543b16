"""Assembles a run from its config (environments, learner, programs, state) and hands it to the loop."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxrl import assembly, changes, envs, joint, loop, nans, onboard, plan, rundir, runtime, saving
from jaxrl.actor import plain
from jaxrl.assembly import assemble, compiled
from jaxrl.config import Config, to_dict
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import WriteFailed
from jaxrl.faults import Faults
from jaxrl.feeds.episodes import EpisodeFiles
from jaxrl.filming import Projector
from jaxrl.flags import Command
from jaxrl.keys import ACT, env_seed
from jaxrl.layout import fetched
from jaxrl.parts import Due, Parts, batch_shapes
from jaxrl.placement import Placement
from jaxrl.programs import Programs
from jaxrl.saver import Saver, opened_stores, recovered
from jaxrl.sinks import Sink, Sinks, make_sinks
from jaxrl.sinks.jsonl import set_aside
from jaxrl.sinks.live import LiveSink
from jaxrl.sinks.samples import SampleFiles
from jaxrl.sinks.wandb import WandB
from jaxrl.start import Start, start_of
from jaxrl.state import Counters, RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.stores import Stores, search
from jaxrl.types import Step


@dataclasses.dataclass(frozen=True)
class Control:
    """What the process has to say to its run, and wants to know of it."""

    stop: Callable[[], bool]  # True once the run is asked to end
    opened: Callable[[rundir.RunDir], None]  # called once the run directory is this command's
    faults: Faults


def train(command: Command, machine: runtime.Machine, argv: list[str], control: Control) -> bool:
    """Starts or continues a run. True if it came to its last step, False if it was asked to stop before.

    Args:
      command: with a resolved config.
      argv: the command line, for run.json.

    Raises:
      ConfigError: before anything is written.
      RunError: with an exit code of its own.
    """
    config, origin, hosts = command.config, command.origin, machine.hosts
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(training_env(config, 0, machine))
        start = start_of(config) if origin.saved is None else None
        parts = assemble(config, machine, env, start.saved if start else None)
        if start:
            check_source(parts, start)
        run_dir = stack.enter_context(joint.opened(config, origin, hosts))
        stores = stack.enter_context(opened_stores(run_dir, config, control.faults, hosts))
        found, remarks = recovered(stores) if stores else (None, [])
        if start is None:
            start = start_of(config, found)
            parts = assemble(config, machine, env, start.saved)
        run_dir.begin(config, argv, start.step, changes.changed(origin, config), start.identity)
        control.opened(run_dir)
        remarks += [line for line in start.remarks if line not in command.notes]
        start = dataclasses.replace(start, remarks=tuple(remarks))
        try:
            counters = train_in(run_dir, parts, env, stores, start, control)
        except BaseException as error:
            hosts.verdict(error)
            with contextlib.suppress(WriteFailed):
                run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
            raise
    return finished(config, counters)


def train_in(
    run_dir: rundir.RunDir,
    parts: Parts,
    env: CheckedEnv,
    stores: Stores | None,
    start: Start,
    control: Control,
) -> Counters:
    """The run in its directory, from a checkpoint if there is one."""
    config, faults, began = parts.config, control.faults, time.monotonic()
    with contextlib.ExitStack() as stack:
        faults.at("start")
        sinks = stack.enter_context(open_sinks(run_dir, config, start.files, faults))
        sinks.banner(banner(parts, run_dir, start))
        for line in (*start.remarks, "compiling: seconds with a warm cache, up to a minute without ..."):
            sinks.note(line)
        faults.at("compile")
        programs, compile_s = compiled(parts, env), time.monotonic() - began
        state = saving.fitting(env, first_state(parts, programs, start, sinks), sinks.note)
        if start.saved and state.env is None:  # episodes begin anew, and not with those that the run has seen
            env.close()
            env = stack.enter_context(training_env(config, start.step, parts.machine))
        env.faults, reports = faults, nans.Reports(run_dir.path, parts, programs, sinks.note)
        with reports.border(state.counters):
            state, first = begin(parts, env, state)
        files = stack.enter_context(opened_episodes(run_dir, config, start.files))
        watch = started(start.counters, began, compile_s)
        run_dir.note(**describe(parts, programs, compile_s))
        schedule = plan.Plan.of(config)
        shared = dict(programs=programs, sinks=sinks, watch=watch, reports=reports)
        saver = stores and Saver(
            **shared,
            **joint.saving(parts),
            stores=stores,
            config=config,
            clock=schedule.clock,
            identity=run_dir.identity() | {"spaces": plain(env.spaces)},
            snapshot=env.snapshot,
        )
        machinery = loop.Run(
            **shared,
            **joint.running(parts),
            parts=parts,
            plan=schedule,
            env=env,
            saver=saver,
            episodes=files,
            stop=control.stop,
            projector=Projector(run_dir.path / "videos", sinks.note, sinks.post),
            profiler=stack.enter_context(joint.profiler(parts, run_dir, sinks.note)),
            faults=faults,
        )
        state = loop.run(machinery, state, first)
        if files:
            close_episodes(files, sinks)
        say_goodbye(run_dir, config, sinks, state.counters)
        return state.counters


def started(c: Counters, began: float, compile_s: float) -> Stopwatch:
    """The watch of a run that goes on from these counters and began to be prepared at `began`."""
    watch = Stopwatch(c.wall_s + time.monotonic() - began)
    watch.begin(c.env_steps, c.updates, compile_s)
    return watch


def finished(config: Config, counters: Counters) -> bool:
    """The last step was made, and its row and evaluation too."""
    return counters.settled == plan.clock_of(config).steps


@contextlib.contextmanager
def opened_episodes(
    run_dir: rundir.RunDir, config: Config, saved: saving.Saved | None
) -> Iterator[EpisodeFiles | None]:
    if not config.replay.save_episodes:
        yield None
        return
    folder = run_dir.path / "episodes"
    try:
        if saved is None:  # an earlier attempt may have left some
            set_aside(folder)
        files = EpisodeFiles(folder, config.env.num_envs, saved.step if saved else 0)
    except OSError as error:
        raise WriteFailed(f"{folder}: {error.strerror or error}") from error
    with contextlib.closing(files):
        yield files


def close_episodes(files: EpisodeFiles, sinks: Sinks) -> None:
    files.close()
    if files.dropped:
        why = files.failure or "the disk is too slow"
        sinks.note(f"episodes/: {files.dropped} episodes were not written ({why})")


def check_source(parts: Parts, start: Start) -> None:
    """Raises ConfigError if the parameters that are to come from another run do not fit."""
    if start.source:
        learner = jax.eval_shape(parts.learner.init, parts.key)
        saving.chosen_parameters(start.source, learner, parts.config.init_filter)


def first_state(parts: Parts, programs: Programs, start: Start, sinks: Sinks) -> RunState:
    """A new run's state, that of a checkpoint, or a new one with parameters of another run.

    On the host it has what belongs to this process's environments.
    """
    config, own = parts.config, parts.machine.layout.own(parts.config.env.num_envs)
    state = saving.fresh_state(programs, config.env.num_envs)
    if start.saved:
        return saving.with_own(saving.restore(start.saved, state), own)
    state = saving.with_own(state, own)
    if start.source:
        state, names = saving.take_parameters(start.source, state, config.init_filter)
        total = len(saving.parameters({"learner": state.learner}))
        sinks.note(f"{len(names)} of {total} tensors of parameters come from {start.source.folder}")
        return state.replace(policy=programs.policy(state.learner))
    return state


@contextlib.contextmanager
def training_env(
    config: Config, env_steps: int, machine: runtime.Machine | None = None
) -> Iterator[CheckedEnv]:
    """The training environments of a run that starts, or starts again, at `env_steps`.

    Args:
      machine: whose processes share them; None: all are in this one.
    """
    seed, n = env_seed(config.seed, ACT, env_steps), config.env.num_envs
    own = machine.layout.own(n) if machine else slice(0, n)
    env = envs.make(config.task, config.env, num_envs=own.stop - own.start, seed=seed, first=own.start)
    try:
        yield env
    finally:
        env.close()


def begin(parts: Parts, env: CheckedEnv, state: RunState) -> tuple[RunState, Step]:
    """The environments' first row: of the saved state where they can be saved, else of new episodes."""
    step = env.reset()
    if parts.batched:
        env.place(parts.machine.layout, parts.replay.streams)
    if state.env is not None:
        snapshot = jax.tree.unflatten(jax.tree.structure(env.snapshot()), state.env)
        return state, env.restore(snapshot)
    tracker, _ = state.tracker.restarted().advanced(step, *env.outcome)
    return state.replace(tracker=tracker), step


def open_sinks(run_dir: rundir.RunDir, config: Config, saved: saving.Saved | None, faults: Faults) -> Sinks:
    if isinstance(run_dir, joint.Onlooker):
        return Sinks([])  # of this process nobody is to see rows
    resume_step, scores_step = (saved.counters.settled, saved.step) if saved else (None, None)
    try:
        more: list[Sink] = [SampleFiles(run_dir.path, resume_step)]
        if config.plot.enabled or config.live:
            more.append(LiveSink(run_dir.path, resume_step, scores_step, config.live))
        if config.wandb.enabled:
            more.append(WandB(run_dir.path, config.wandb, to_dict(config), {}, resume_step))
        return make_sinks(
            run_dir.path,
            steps=plan.clock_of(config).steps,
            resume_step=resume_step,
            scores_step=scores_step,
            tensorboard=config.tensorboard.enabled,
            terminal_filter=config.terminal.filter,
            terminal_style=config.terminal.style,
            more=more,
            faults=faults,
        )
    except OSError as error:
        raise WriteFailed(f"{error.filename or run_dir.path}: {error.strerror or error}") from error


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


def say_goodbye(run_dir: rundir.RunDir, config: Config, sinks: Sinks, c: Counters) -> None:
    """Notes how the run ended. Raises WriteFailed if rows were lost."""
    done = finished(config, c)
    reason = "done" if done else "stopped"
    run_dir.note(exit=reason, ended=rundir.now(), wall_s=c.wall_s, env_steps=c.env_steps, updates=c.updates)
    sinks.note(f"{reason} at step {c.env_steps:,} after {c.updates:,} updates: {run_dir.path}")
    if not done and config.checkpoint.enabled:
        sinks.note(f"to continue: the same command with --logdir={run_dir.path}")
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


def dry_run(command: Command, machine: runtime.Machine, say: Callable[[str], None]) -> None:
    """Builds everything, does one step of each phase, tells sizes and units; writes nothing."""
    config, path = command.config, command.origin.path
    with training_env(config, 0, machine) as env:
        found = search(path)[0] if path and command.origin.saved is not None else None
        start = start_of(config, found)
        parts = assemble(config, machine, env, start.saved)
        check_source(parts, start)
        remarks = [line for line in start.remarks if line not in command.notes]
        for line in [*remarks, *banner(parts, None, None)]:
            say(line)
        say("compiling ...")
        programs = compiled(parts, env)
        table = memory_table(parts, programs, runtime.resident_memory(), assembly.memory_of(env, 0))
        one_step_each(parts, programs, env)
        for line in table:
            say(line)
        say("one step of each phase was done; nothing was written")


def one_step_each(parts: Parts, programs: Programs, env: CheckedEnv) -> None:
    """Acting, a step of the environments, insertion, an update, an evaluation step, a flush."""
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


def memory_table(parts: Parts, programs: Programs, process: int, stepping: int) -> list[str]:
    """Bytes of the process before it holds any state, of what stays on a device, of what is temporary.

    Args:
      process: of its host memory. stepping: that a step of the environments takes.
    """
    state = jax.eval_shape(parts.learner.init, parts.key)
    rows = {"process (host)": process}  # interpreter, libraries, compiled programs
    rows |= {"learner": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))}
    rows["replay"] = (parts.replay.nbytes + (parts.held.nbytes if parts.held else 0)) // Placement(
        parts
    ).groups
    if parts.learner.update is not None:  # one batch, of the first update that is not finite
        batch = batch_shapes(parts.replay, parts.key)
        rows["evidence"] = (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(batch)) // parts.machine.count
        )
    if parts.config.checkpoint.enabled:
        # A copy of the learner waits beside the one on its way, where a best checkpoint is made up for.
        kept = rows["learner"] + max(rows["learner"], rows["replay"] * parts.config.checkpoint.replay)
        rows["checkpoint (temporary)"] = kept + saving.OVERHEAD
    if stepping:
        rows["environments (temporary)"] = stepping
    large = {name: x.temp_bytes for name, x in programs.compiled.items() if x.temp_bytes > 100_000}
    rows |= {f"{name} (temporary)": size for name, size in large.items()}
    width = max(len(name) for name in rows)
    return [f"memory     {name:{width}} {size:>16,} B" for name, size in rows.items()]
