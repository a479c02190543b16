"""Assembles a run from its config (environments, learner, programs, state) and hands it to the loop."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator

import jax

from jaxrl import changes, envs, joint, loop, memory, nans, plan, rundir, runtime, saving
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
from jaxrl.parts import Parts
from jaxrl.programs import Programs
from jaxrl.rehearsal import rehearsed
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
from jaxrl.telling import banner, describe, finished, say_goodbye
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Opened:
    """A run in its directory, of which nothing is compiled yet."""

    run_dir: rundir.RunDir
    parts: Parts
    env: CheckedEnv
    stores: Stores | None
    start: Start
    control: Control
    sinks: Sinks
    began: float  # time.monotonic
    home: pathlib.Path | None = None  # what --logdir names; None: the run directory


def train_in(
    run_dir: rundir.RunDir,
    parts: Parts,
    env: CheckedEnv,
    stores: Stores | None,
    start: Start,
    control: Control,
) -> Counters:
    """The run in its directory, from a checkpoint if there is one."""
    faults, began = control.faults, time.monotonic()
    with contextlib.ExitStack() as stack:
        faults.at("start")
        sinks = stack.enter_context(open_sinks(run_dir, parts.config, start.files, faults))
        opened = Opened(
            run_dir=run_dir,
            parts=parts,
            env=env,
            stores=stores,
            start=start,
            control=control,
            sinks=sinks,
            began=began,
        )
        introduce(opened)
        faults.at("compile")
        programs = compiled(parts, env)
        machinery, state, first = ready(stack, opened, programs, time.monotonic() - began)
        state = loop.run(machinery, state, first)
        wind_up(opened, machinery, state.counters)
        return state.counters


def introduce(opened: Opened, *more: str) -> None:
    """Says what the run is, in a line each also what `more` there is, and that compiling takes a while."""
    opened.sinks.banner([*banner(opened.parts, opened.run_dir, opened.start), *more])
    for line in (
        *opened.start.remarks,
        "compiling: seconds with a warm cache, up to a minute without ...",
    ):
        opened.sinks.note(line)


def ready(
    stack: contextlib.ExitStack, opened: Opened, programs: Programs, compile_s: float
) -> tuple[loop.Run, RunState, Step]:
    """The machinery of the run, its first state and the environments' first row; `stack` closes it."""
    run_dir, parts, start, sinks = opened.run_dir, opened.parts, opened.start, opened.sinks
    config, env, faults = parts.config, opened.env, opened.control.faults
    state = saving.fitting(env, first_state(parts, programs, start, sinks), sinks.note)
    if start.saved and state.env is None:  # episodes begin anew, and not with those that the run has seen
        env.close()
        env = stack.enter_context(training_env(config, start.step, parts.machine))
    env.faults, reports = faults, nans.Reports(run_dir.path, parts, programs, sinks.note)
    with reports.border(state.counters):
        state, first = begin(parts, env, state)
    watch = started(start.counters, opened.began, compile_s)
    run_dir.note(**describe(parts, programs, compile_s))
    schedule = plan.Plan.of(config)
    shared = dict(programs=programs, sinks=sinks, watch=watch, reports=reports)
    saver = opened.stores and Saver(
        **shared,
        **joint.saving(parts),
        stores=opened.stores,
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
        episodes=stack.enter_context(opened_episodes(run_dir, config, start.files)),
        stop=opened.control.stop,
        projector=Projector(run_dir.path / "videos", sinks.note, sinks.post),
        profiler=stack.enter_context(joint.profiler(parts, run_dir, sinks.note)),
        faults=faults,
    )
    return machinery, state, first


def wind_up(opened: Opened, machinery: loop.Run, counters: Counters) -> None:
    """After the last save. Raises WriteFailed if rows were lost."""
    if machinery.episodes:
        close_episodes(machinery.episodes, opened.sinks)
    say_goodbye(opened.run_dir, opened.parts.config, opened.sinks, counters, opened.home)


def started(c: Counters, began: float, compile_s: float) -> Stopwatch:
    """The watch of a run that goes on from these counters and began to be prepared at `began`."""
    watch = Stopwatch(c.wall_s + time.monotonic() - began)
    watch.begin(c.env_steps, c.updates, compile_s)
    return watch


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


def open_sinks(
    run_dir: rundir.RunDir, config: Config, saved: saving.Saved | None, faults: Faults, label: str = ""
) -> Sinks:
    """`label`: of the run, where several share the terminal."""
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
            label=label,
            more=more,
            faults=faults,
        )
    except OSError as error:
        raise WriteFailed(f"{error.filename or run_dir.path}: {error.strerror or error}") from error


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
        process = rehearsed(parts, programs, env)
        for line in memory.table(parts, programs, env, process):
            say(line)
        say("one step of each phase was done; nothing was written")
