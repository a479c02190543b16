"""Assembles a run from its config (environments, learner, programs, state) and hands it to the loop."""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from jaxrl import envs, learners, loop, plan, rundir, runtime, saving
from jaxrl.checkpoint import Store
from jaxrl.config import Config
from jaxrl.envs.base import CheckedEnv
from jaxrl.evaluation import eval_envs
from jaxrl.exits import WriteFailed
from jaxrl.feeds.episodes import EpisodeFiles
from jaxrl.feeds.replay import Replay, check_budget
from jaxrl.flags import Command
from jaxrl.keys import ACT, env_seed
from jaxrl.programs import Parts, Programs
from jaxrl.sinks import Sinks, make_sinks
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
    with training_env(command.config) as env:
        parts = assemble(command.config, machine, env, plan.ring_rows(command.config))
        run_dir = rundir.open_run(command.config, command.preset, argv)
        try:
            state = train_in(run_dir, parts, env, stop)
        except BaseException as error:
            run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
            raise
    return state.counters.env_steps == plan.clock_of(command.config).steps


def train_in(run_dir: rundir.RunDir, parts: Parts, env: CheckedEnv, stop: Callable[[], bool]) -> RunState:
    """The run in its directory, from its newest checkpoint if it has one."""
    config, began = parts.config, time.monotonic()
    with contextlib.ExitStack() as stack:
        store, step, counters = None, None, None
        if config.checkpoint.enabled:
            store = stack.enter_context(
                contextlib.closing(Store(run_dir.checkpoints, config.checkpoint.keep))
            )
            step = store.latest()
        if store and step is not None:
            counters = saving.load_counters(store, step)
            rows = max(parts.replay.rows, saving.saved_rows(store, step))
            parts = assemble(config, parts.machine, env, rows)
        sinks = stack.enter_context(open_sinks(run_dir, config, counters))
        sinks.banner(banner(parts, run_dir, step))
        sinks.note("compiling: seconds with a warm cache, up to a minute without ...")
        programs = Programs(parts)
        state = saving.fresh_state(programs, config.env.num_envs)
        if store and step is not None:
            state = saving.restore(store, step, state)
        state, first = begin(env, state)
        c = state.counters
        watch = Stopwatch(c.wall_s + time.monotonic() - began)
        watch.begin(c.env_steps, c.updates, sum(x.seconds for x in programs.compiled.values()))
        run_dir.note(**describe(parts, programs))
        files = None
        if config.replay.save_episodes:
            files = EpisodeFiles(run_dir.path / "episodes", config.env.num_envs)
            stack.enter_context(contextlib.closing(files))
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
        say_goodbye(run_dir, parts, sinks, state)
        return state


def assemble(config: Config, machine: runtime.Machine, env: CheckedEnv, rows: int) -> Parts:
    """Learner, replay and key; nothing is allocated.

    Args:
      config: without "auto".
      rows: of the ring, per stream.

    Raises:
      ConfigError: if replay does not fit its budget.
    """
    learner = learners.make(config, env.spaces)
    window = config.batch_length + learner.context
    share = config.replay.holdout if learner.validate else 0.0

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

    replay = sized(rows if learner.update else window, config.replay.online)
    held = sized(max(window, int(rows * share) + 1), False) if share else None
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
def training_env(config: Config) -> Iterator[CheckedEnv]:
    seed = env_seed(config.seed, ACT, 0)
    env = envs.make(config.task, config.env, num_envs=config.env.num_envs, seed=seed)
    try:
        yield env
    finally:
        env.close()


def begin(env: CheckedEnv, state: RunState) -> tuple[RunState, Step]:
    """The environments' first row: of the saved state where they can be saved, else of new episodes."""
    if state.env is not None:
        return state, env.restore(state.env)
    step = env.reset()
    tracker, _ = state.tracker.restarted().advanced(step, *env.outcome)
    return state.replace(tracker=tracker), step


def open_sinks(run_dir: rundir.RunDir, config: Config, counters: Counters | None) -> Sinks:
    try:
        return make_sinks(
            run_dir.path,
            steps=plan.clock_of(config).steps,
            resume_step=counters.settled if counters else None,
            scores_step=counters.env_steps if counters else None,
            tensorboard=config.tensorboard.enabled,
            terminal_filter=config.terminal.filter,
            terminal_style=config.terminal.style,
        )
    except OSError as error:
        raise WriteFailed(f"{error.filename or run_dir.path}: {error.strerror or error}") from error


def banner(parts: Parts, run_dir: rundir.RunDir | None, step: int | None) -> list[str]:
    """Lines for the start: what the run is and what it will do."""
    config, machine, facts = parts.config, parts.machine, {}
    if run_dir:
        facts["run"] = str(run_dir.path) + (f" (continued from step {step:,})" if step is not None else "")
    facts["device"] = f"{machine.kind} ({machine.platform})"
    if parts.learner.update is not None:
        params = jax.eval_shape(parts.learner.init, parts.key).params
        count = sum(x.size for x in jax.tree.leaves(params))
        facts["model"] = f"{config.model.size}, {count:,} parameters, {config.model.compute_dtype}"
    return plan.banner(config, plan.Plan.of(config), parts.replay, facts)


def say_goodbye(run_dir: rundir.RunDir, parts: Parts, sinks: Sinks, state: RunState) -> None:
    """Notes how the run ended. Raises WriteFailed if rows were lost."""
    c = state.counters
    finished = c.env_steps == plan.clock_of(parts.config).steps
    reason = "done" if finished else "stopped"
    run_dir.note(exit=reason, ended=rundir.now(), wall_s=c.wall_s, env_steps=c.env_steps, updates=c.updates)
    again = "" if finished else f"; continue with the same command and --logdir={run_dir.path}"
    sinks.note(f"{reason} at step {c.env_steps:,} after {c.updates:,} updates: {run_dir.path}{again}")
    sinks.flush()
    if sinks.lost or sinks.failure:
        raise WriteFailed(f"metrics were lost ({sinks.failure or sinks.lost}); free disk space")


def describe(parts: Parts, programs: Programs) -> dict[str, object]:
    """For run.json: where and with what the run computes."""
    machine = parts.machine
    return {
        "versions": runtime.versions(),
        "device": {"platform": machine.platform, "kind": machine.kind, "count": machine.count},
        "compile_s": {name: round(x.seconds, 3) for name, x in programs.compiled.items()},
    }


def dry_run(config: Config, machine: runtime.Machine, say: Callable[[str], None]) -> None:
    """Builds everything, does one step of each phase, tells sizes and units; writes nothing."""
    with training_env(config) as env:
        parts = assemble(config, machine, env, plan.ring_rows(config))
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
    jax.device_get(programs.flush(totals))


def memory_table(parts: Parts, programs: Programs) -> list[str]:
    """Bytes of what stays on the devices and of each program's scratch memory."""
    state = jax.eval_shape(parts.learner.init, parts.key)
    rows = {"learner": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))}
    rows["replay"] = parts.replay.nbytes + (parts.held.nbytes if parts.held else 0)
    large = {name: x.temp_bytes for name, x in programs.compiled.items() if x.temp_bytes > 100_000}
    rows |= {f"{name} (temporary)": size for name, size in large.items()}
    width = max(len(name) for name in rows)
    return [f"memory     {name:{width}} {size:>16,} B" for name, size in rows.items()]
