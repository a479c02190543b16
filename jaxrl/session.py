"""Assembles a run from its config (environments, learner, programs, state) and hands it to the loop."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxrl import envs, learners, loop, plan, rundir, runtime, saving
from jaxrl.checkpoint import Store
from jaxrl.config import Config, ConfigError
from jaxrl.envs.base import CheckedEnv
from jaxrl.evaluation import eval_envs
from jaxrl.exits import WriteFailed
from jaxrl.feeds.episodes import EpisodeFiles
from jaxrl.feeds.replay import Replay, check_budget
from jaxrl.flags import Command
from jaxrl.keys import ACT, env_seed
from jaxrl.programs import Parts, Programs
from jaxrl.sinks import Sinks, make_sinks
from jaxrl.sinks.jsonl import set_aside
from jaxrl.state import Counters, RunState
from jaxrl.stopwatch import Stopwatch
from jaxrl.types import Step


def train(command: Command, machine: runtime.Machine, argv: list[str], stop: Callable[[], bool]) -> bool:
    """Starts or continues a run. True if it came to its last step, False if it was asked to stop before.

    Args:
      command: with a resolved config.
      argv: the command line, for run.json.
      stop: True once the run is asked to end.

    Raises:
      ConfigError: before anything is written.
      RunError: with an exit code of its own.
    """
    config = command.config
    with contextlib.ExitStack() as stack:
        env = stack.enter_context(training_env(config, 0))
        parts = assemble(config, machine, env)
        run_dir = stack.enter_context(contextlib.closing(rundir.open_run(config, command.preset)))
        store = stack.enter_context(opened_store(run_dir, config))
        saved = saving.newest(store) if store else None
        if saved:
            check_continues(run_dir, config, saved)
            parts = assemble(config, machine, env, saved)
        run_dir.begin(config, argv)
        try:
            counters = train_in(run_dir, parts, env, store, saved, stop)
        except BaseException as error:
            with contextlib.suppress(WriteFailed):
                run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
            raise
    return finished(config, counters)


def train_in(
    run_dir: rundir.RunDir,
    parts: Parts,
    env: CheckedEnv,
    store: Store | None,
    saved: saving.Saved | None,
    stop: Callable[[], bool],
) -> Counters:
    """The run in its directory, from a checkpoint if there is one."""
    config, began = parts.config, time.monotonic()
    counters = saved.counters if saved else Counters()
    with contextlib.ExitStack() as stack:
        sinks = stack.enter_context(open_sinks(run_dir, config, saved))
        sinks.banner(banner(parts, run_dir, saved))
        sinks.note("compiling: seconds with a warm cache, up to a minute without ...")
        programs = Programs(parts)
        compile_s = time.monotonic() - began
        state = saving.fresh_state(programs, config.env.num_envs)
        if store and saved:
            state = saving.restore(store, saved, state)
            if state.env is None:  # episodes begin anew, and not with those that the run has seen
                env.close()
                env = stack.enter_context(training_env(config, saved.step))
        state, first = begin(env, state)
        files = stack.enter_context(opened_episodes(run_dir, config, saved))
        watch = Stopwatch(counters.wall_s + time.monotonic() - began)
        watch.begin(counters.env_steps, counters.updates, compile_s)
        run_dir.note(**describe(parts, programs, compile_s))
        machinery = loop.Run(
            parts=parts,
            programs=programs,
            plan=plan.Plan.of(config),
            env=env,
            sinks=sinks,
            store=store,
            episodes=files,
            watch=watch,
            stop=stop,
        )
        state = loop.run(machinery, state, first)
        if files:
            files.close()
            if files.dropped:
                why = files.failure or "the disk is too slow"
                sinks.note(f"episodes/: {files.dropped} episodes were not written ({why})")
        say_goodbye(run_dir, config, sinks, state.counters)
        return state.counters


def finished(config: Config, counters: Counters) -> bool:
    """The last step was made, and its row and evaluation too."""
    return counters.settled == plan.clock_of(config).steps


@contextlib.contextmanager
def opened_store(run_dir: rundir.RunDir, config: Config) -> Iterator[Store | None]:
    if not config.checkpoint.enabled:
        if run_dir.checkpoints.is_dir() and any(run_dir.checkpoints.iterdir()):
            raise ConfigError(
                f"checkpoint.enabled=false: {run_dir.path} has checkpoints that a run there continues from; "
                "choose another logdir"
            )
        yield None
        return
    with contextlib.closing(Store(run_dir.checkpoints, config.checkpoint.keep)) as store:
        yield store


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


def check_continues(run_dir: rundir.RunDir, config: Config, saved: saving.Saved) -> None:
    """Raises ConfigError if the run is beyond the end that it is given now."""
    if saved.step > plan.clock_of(config).steps:
        raise ConfigError(
            f"steps={config.steps}: the run in {run_dir.path} has made {saved.step} already; "
            f"use --steps={saved.step} or more, or another logdir"
        )


def assemble(
    config: Config, machine: runtime.Machine, env: CheckedEnv, saved: saving.Saved | None = None
) -> Parts:
    """Learner, replay and key; nothing is allocated.

    Args:
      config: without "auto".
      saved: the checkpoint that the run continues from.

    Raises:
      ConfigError: if replay does not fit its budget.
    """
    learner = learners.make(config, env.spaces)
    window = config.batch_length + learner.context
    share = config.replay.holdout if learner.validate else 0.0
    rows = max(plan.ring_rows(config), saved.rows if saved else 0) if learner.update else window
    # Sized by the share, which chance may exceed: it can wrap early, and a ring that has wrapped cannot grow.
    held_rows = (saved.held_rows if saved else 0) or max(window, int(rows * share) + 1)

    def sized(rows: int, online: bool) -> Replay:
        return Replay(
            spaces=env.spaces,
            latents=jax.eval_shape(learner.latent_zeros),
            streams=config.env.num_envs,
            rows=rows,
            batch=config.batch_size,
            length=config.batch_length,
            context=learner.context,
            online=online,
        )

    replay = sized(rows, config.replay.online)
    held = sized(held_rows, False) if share else None
    budget = int(config.replay.budget_gb * 1e9) or machine.memory // 2
    check_budget(replay, held.nbytes if held else 0, budget, config.replay.placement)
    key = jax.device_put(jax.random.key(config.seed), machine.learner)
    return Parts(
        config=config,
        learner=learner,
        replay=replay,
        held=held,
        machine=machine,
        eval_envs=eval_envs(config),
        key=key,
    )


@contextlib.contextmanager
def training_env(config: Config, env_steps: int) -> Iterator[CheckedEnv]:
    """The training environments of a run that starts, or starts again, at `env_steps`."""
    seed = env_seed(config.seed, ACT, env_steps)
    env = envs.make(config.task, config.env, num_envs=config.env.num_envs, seed=seed)
    try:
        yield env
    finally:
        env.close()


def begin(env: CheckedEnv, state: RunState) -> tuple[RunState, Step]:
    """The environments' first row: of the saved state where they can be saved, else of new episodes."""
    step = env.reset()
    if state.env is not None:
        snapshot = jax.tree.unflatten(jax.tree.structure(env.snapshot()), state.env)
        return state, env.restore(snapshot)
    tracker, _ = state.tracker.restarted().advanced(step, *env.outcome)
    return state.replace(tracker=tracker), step


def open_sinks(run_dir: rundir.RunDir, config: Config, saved: saving.Saved | None) -> Sinks:
    try:
        return make_sinks(
            run_dir.path,
            steps=plan.clock_of(config).steps,
            resume_step=saved.counters.settled if saved else None,
            scores_step=saved.step if saved else None,
            tensorboard=config.tensorboard.enabled,
            terminal_filter=config.terminal.filter,
            terminal_style=config.terminal.style,
        )
    except OSError as error:
        raise WriteFailed(f"{error.filename or run_dir.path}: {error.strerror or error}") from error


def banner(parts: Parts, run_dir: rundir.RunDir | None, saved: saving.Saved | None) -> list[str]:
    """Lines for the start: what the run is and what it will do."""
    config, machine, facts = parts.config, parts.machine, {}
    if run_dir:
        facts["run"] = str(run_dir.path) + (f" (continued from step {saved.step:,})" if saved else "")
    facts["device"] = f"{machine.kind} ({machine.platform})"
    if parts.learner.update is not None:
        params = jax.eval_shape(parts.learner.init, parts.key).params
        count = sum(x.size for x in jax.tree.leaves(params))
        facts["model"] = f"{config.model.size}, {count:,} parameters, {config.model.compute_dtype}"
    return plan.banner(config, plan.Plan.of(config), parts.replay, facts)


def say_goodbye(run_dir: rundir.RunDir, config: Config, sinks: Sinks, c: Counters) -> None:
    """Notes how the run ended. Raises WriteFailed if rows were lost."""
    done = finished(config, c)
    reason = "done" if done else "stopped"
    run_dir.note(exit=reason, ended=rundir.now(), wall_s=c.wall_s, env_steps=c.env_steps, updates=c.updates)
    sinks.note(f"{reason} at step {c.env_steps:,} after {c.updates:,} updates: {run_dir.path}")
    if not done and config.checkpoint.enabled:
        sinks.note(f"to continue: the same command with --logdir={run_dir.path}")
    sinks.flush()
    if sinks.lost or sinks.failure:
        raise WriteFailed(f"metrics were lost ({sinks.failure or sinks.lost}); free disk space")


def describe(parts: Parts, programs: Programs, compile_s: float) -> dict[str, object]:
    """For run.json: where and with what the run computes."""
    machine = parts.machine
    return {
        "versions": runtime.versions(),
        "device": {"platform": machine.platform, "kind": machine.kind, "count": machine.count},
        "compile_s": round(compile_s, 3),  # with tracing; programs are compiled side by side
        "compile_s_each": {name: round(x.seconds, 3) for name, x in programs.compiled.items()},
    }


def dry_run(config: Config, machine: runtime.Machine, say: Callable[[str], None]) -> None:
    """Builds everything, does one step of each phase, tells sizes and units; writes nothing."""
    with training_env(config, 0) as env:
        parts = assemble(config, machine, env)
        for line in banner(parts, None, None):
            say(line)
        say("compiling ...")
        programs = Programs(parts)
        one_step_each(parts, programs, env)
        for line in memory_table(parts, programs):
            say(line)
        say("one step of each phase was done; nothing was written")


def one_step_each(parts: Parts, programs: Programs, env: CheckedEnv) -> None:
    """Acting, a step of the environments, insertion, an update, an evaluation step, a flush."""
    state = saving.fresh_state(programs, parts.config.env.num_envs)
    step = programs.put(env.reset())
    out, _ = programs.act(state.policy, state.carry, state.counter, step)
    held = np.zeros(parts.config.env.num_envs, bool) if parts.held else None
    ring, _ = programs.insert((state.ring, state.held), step, out, held)
    env.send(jax.device_get(out.action))
    env.recv()
    totals = state.totals
    if parts.learner.update is not None:
        _, _, totals, _ = programs.learn(state.learner, ring, totals, 1, 0)
    jax.device_get(totals)


def memory_table(parts: Parts, programs: Programs) -> list[str]:
    """Bytes of what stays on the devices and of each program's scratch memory."""
    state = jax.eval_shape(parts.learner.init, parts.key)
    rows = {"learner": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))}
    rows["replay"] = parts.replay.nbytes + (parts.held.nbytes if parts.held else 0)
    large = {name: x.temp_bytes for name, x in programs.compiled.items() if x.temp_bytes > 100_000}
    rows |= {f"{name} (temporary)": size for name, size in large.items()}
    width = max(len(name) for name in rows)
    return [f"memory     {name:{width}} {size:>16,} B" for name, size in rows.items()]
