"""A population from end to end: several independent runs, of a seed and a task each, in one process.

Each member has its own run directory, `<logdir>/<task>-<seed>`, which is that of a single run in everything:
it can be continued alone, looked at, compared. All are at the same step at every moment.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from jaxrl import abreast, changes, lockstep, memory, rundir, runtime, saving
from jaxrl.assembly import assemble, compiled
from jaxrl.config import Config, ConfigError
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import Diverged, WriteFailed
from jaxrl.flags import Command
from jaxrl.hosts import ALONE
from jaxrl.layout import Layout
from jaxrl.lockstep import Population, Together
from jaxrl.members import ON_DEVICE, Members
from jaxrl.memory import Process
from jaxrl.parts import Due, Parts
from jaxrl.rehearsal import rehearsed
from jaxrl.roster import commands_of, present, with_environments
from jaxrl.runtime import Machine
from jaxrl.session import (
    Control,
    Opened,
    check_source,
    introduce,
    open_sinks,
    opened_stores,
    ready,
    recovered,
    wind_up,
)
from jaxrl.start import Start, start_of
from jaxrl.state import RunState
from jaxrl.stores import LATEST, Checkpoint, Stores
from jaxrl.stores.shelf import folders, numbers
from jaxrl.telling import banner, finished


def train(command: Command, machine: Machine, argv: list[str], control: Control) -> bool:
    """Starts or continues a population; see `session.train`. True if all came to their last step.

    Raises:
      Diverged: members have; the others came as far as they could.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        commands = commands_of(command)
        wanted = commands.keys()
        members, env = with_environments(stack, present(commands, machine), machine)
        configs = [x.config for x in members.values()]
        parts = of_each(assemble(configs[0], one_device(machine), env[0]), configs, env)
        layout = layout_of(parts, machine)
        check_memory(parts, layout, command.config)
        check_steps(members)
        run_dirs, stores = opened(stack, members, parts, control)
        starts, parts = begun(members, stores, parts, env)
        with told_of_failure(run_dirs):
            for one, run_dir, start in zip(members.values(), run_dirs, starts, strict=True):
                changed = changes.changed(one.origin, one.config)
                run_dir.begin(one.config, argv, start.step, changed, start.identity)
                control.opened(run_dir)
            seats = [
                Opened(
                    run_dir=run_dirs[m],
                    parts=parts[m],
                    env=env[m],
                    stores=stores[m],
                    start=starts[m],
                    control=control,
                    sinks=stack.enter_context(
                        open_sinks(run_dirs[m], configs[m], starts[m].files, control.faults, name)
                    ),
                    began=began,
                    home=run_dirs[m].path.parent,
                )
                for m, name in enumerate(members)
            ]
            introduce_all(seats, words(len(seats), layout, machine))
            for name in wanted - members.keys():
                seats[0].sinks.note(f"{name} is left out: it has diverged")
            control.faults.at("compile")
            p, states = started(stack, seats, layout, command.config)
            states = lockstep.run(p, states, abreast.gather_of(p) if layout else lockstep.in_turn)
            close(seats, p, states)
    if states.over:
        names = ", ".join(list(members)[m] for m in sorted(states.over))
        raise Diverged(f"{len(states.over)} of {len(members)} members have diverged ({names})")
    return finished(configs[0], states.counters)


def one_device(machine: Machine) -> Machine:
    """For the programs of one member."""
    return dataclasses.replace(machine, layout=Layout(machine.layout.devices[:1]))


def of_each(parts: Parts, configs: Sequence[Config], env: Sequence[CheckedEnv]) -> list[Parts]:
    """The parts of each member, from those of one: all but key and actions is shared."""
    found = []
    for config, one in zip(configs, env, strict=True):
        key = jax.device_put(jax.random.key(config.seed), parts.machine.layout.whole)
        replay = dataclasses.replace(parts.replay, spaces=one.spaces)
        found.append(dataclasses.replace(parts, config=config, key=key, replay=replay))
    return found


def layout_of(parts: Sequence[Parts], machine: Machine) -> Layout | None:
    """The devices over which members are divided that one program learns for; None: one after another.

    On a CPU they take turns: XLA has no fast convolution there for weights that differ from member to member.

    Raises:
      ConfigError: if the members cannot share what they are to share.
    """
    first, count = parts[0], len(parts)
    config, wish = first.config, first.config.runtime.population
    if first.batched and len({x.config.task for x in parts}) > 1:
        raise ConfigError(
            "tasks: environments on the device are one program, so they are all of one task; use "
            "--env.placement=host"
        )
    need = "replay.holdout" if config.replay.holdout else ""
    need = "replay.placement" if config.replay.placement == "host" else need
    if wish == "joint" and need:
        raise ConfigError(f"runtime.population=joint: {need} needs each member alone; leave one of them out")
    if wish == "turns" or need or (wish == "auto" and machine.platform == "cpu"):
        return None
    most = max(k for k in range(1, machine.count + 1) if count % k == 0)
    return Layout(machine.layout.devices[:most])


def check_memory(parts: Sequence[Parts], layout: Layout | None, asked: Config, scratch: int = 0) -> None:
    """Raises ConfigError if states and replay of all members do not fit, naming how many do.

    Args:
      asked: the command's config, for the error.
      scratch: bytes of the largest program on a device, of a joint one for its share of the members.
    """
    first, devices = parts[0], layout.count if layout else 1
    state = jax.eval_shape(first.learner.init, first.key)
    stays = memory.nbytes((state, jax.eval_shape(first.learner.policy_params, state))) + first.replay.nbytes
    share = len(parts) // devices
    each, once = (
        (stays + scratch // share, stays) if layout else (stays, scratch)
    )  # saving takes a copy of one
    fits = (int(0.9 * first.machine.memory) - once) // each * devices
    if fits < len(parts):
        remedy = f"{fits} fit" if fits > 0 else "not even one fits"
        name = "seeds" if asked.seeds else "tasks"
        raise ConfigError(
            f"{name}={getattr(asked, name)}: {len(parts)} members need {(each * share + once) / 1e9:.1f} GB "
            f"of the {first.machine.memory / 1e9:.1f} GB of each device; {remedy}: name fewer, or lower "
            "--replay.capacity"
        )


def check_steps(members: dict[str, Command]) -> None:
    """Raises ConfigError if there is no step from which all members can go on, as far as names tell."""
    homes = [pathlib.Path(x.config.logdir) / "checkpoints" / LATEST for x in members.values()]
    steps = [{numbers(folder)[0] for folder in folders(home)} for home in homes]
    if any(steps) and not set.intersection(*steps):
        at = ", ".join(f"{name} {max(x, default='none')}" for name, x in zip(members, steps, strict=True))
        raise ConfigError(f"logdir: the members have no checkpoint of one step ({at}); continue each alone")


def opened(
    stack: contextlib.ExitStack, members: dict[str, Command], parts: Sequence[Parts], control: Control
) -> tuple[list[rundir.RunDir], list[Stores | None]]:
    """The run directories, locked, and their checkpoints. What can be checked before is checked first."""
    for command, one in zip(members.values(), parts, strict=True):
        if command.origin.saved is None:
            check_source(one, start_of(command.config))
    run_dirs, stores = [], []
    for command in members.values():
        run_dirs.append(
            stack.enter_context(contextlib.closing(rundir.open_run(command.config, command.origin)))
        )
    for command, run_dir in zip(members.values(), run_dirs, strict=True):
        stores.append(stack.enter_context(opened_stores(run_dir, command.config, control.faults, ALONE)))
    return run_dirs, stores


def begun(
    members: dict[str, Command],
    stores: Sequence[Stores | None],
    parts: Sequence[Parts],
    env: Sequence[CheckedEnv],
) -> tuple[list[Start], list[Parts]]:
    """Where each member begins, and the parts with room for what its replay holds."""
    starts = []
    for command, (found, remarks) in zip(
        members.values(), recovered_alike(list(members), stores), strict=True
    ):
        start = start_of(command.config, found)
        remarks = (*remarks, *(line for line in start.remarks if line not in command.notes))
        starts.append(dataclasses.replace(start, remarks=remarks))
    made = {(c.env_steps, c.updates, c.first_at, c.first_updates) for c in (x.counters for x in starts)}
    if len(made) > 1:
        raise ConfigError(f"logdir: {', '.join(members)} have not made the same updates; continue each alone")
    saved = starts[0].saved
    if saved:
        first = assemble(parts[0].config, parts[0].machine, env[0], saved)
        parts = of_each(first, [x.config for x in parts], env)
    return starts, list(parts)


def recovered_alike(
    names: Sequence[str], stores: Sequence[Stores | None]
) -> list[tuple[Checkpoint | None, list[str]]]:
    """The newest intact checkpoints that are of one step, and lines about what was set aside."""
    known = [x for x in stores if x]
    if len(known) < len(stores):
        return [(None, []) for _ in stores]
    limit, told = None, [[] for _ in known]
    while True:
        shared = set.intersection(*(set(x.steps(limit)) for x in known))
        if not shared and any(x.steps(None) for x in known):
            raise ConfigError(
                f"logdir: {', '.join(names)} have no intact checkpoint of one step; continue each alone"
            )
        limit = max(shared, default=None)
        found = []
        for lines, one in zip(told, known, strict=True):
            checkpoint, remarks = recovered(one, limit)
            lines += remarks
            found.append(checkpoint)
        reached = {x.step if x else -1 for x in found}
        if len(reached) == 1:
            return list(zip(found, told, strict=True))
        limit = min(reached)


@contextlib.contextmanager
def told_of_failure(run_dirs: Sequence[rundir.RunDir]) -> Iterator[None]:
    """Notes in the run.json of those that had not ended yet what has ended all of them."""
    try:
        yield
    except BaseException as error:
        for run_dir in run_dirs:
            with contextlib.suppress(WriteFailed):
                if not rundir.ending_of(run_dir.path):
                    run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
        raise


def words(count: int, layout: Layout | None, machine: Machine) -> str:
    """For the banner."""
    if layout is None:
        return f"population {count} members, each in turn"
    devices = f" on {layout.count} devices" if layout.count > 1 else ""
    spare = f" ({machine.count} do not divide {count} members)" if layout.count < machine.count else ""
    return f"population {count} members, in one program{devices}{spare}"


def introduce_all(seats: Sequence[Opened], line: str) -> None:
    """The first member's banner, and what the others have to say."""
    introduce(seats[0], f"{line}: {seats[0].run_dir.path.parent}")
    for seat in seats[1:]:
        for line in seat.start.remarks:
            seat.sinks.note(line)


def started(
    stack: contextlib.ExitStack, seats: Sequence[Opened], layout: Layout | None, asked: Config
) -> tuple[Population, Together]:
    """Compiles, and begins every member."""
    parts, members = [x.parts for x in seats], None
    if layout is None:
        single = compiled(parts[0], seats[0].env)
        programs = [single.of(x) for x in parts]
    else:
        members = Members(parts, layout)
        check_memory(parts, layout, asked, max(x.demand.scratch for x in members.compiled.values()))
        programs = members.of
    compile_s, overlap = time.monotonic() - seats[0].began, parts[0].config.overlap
    runs, states, steps, newest = [], [], [], []

    def whole() -> Iterator[RunState]:
        for seat, one in zip(seats, programs, strict=True):
            machinery, state, step = ready(stack, seat, one, compile_s)
            if members:
                each = {name: round(x.seconds, 3) for name, x in members.compiled.items()}
                seat.run_dir.note(compile_s_jointly=each)
            runs.append(machinery)
            steps.append(step)
            newest.append(one.policy(state.learner) if overlap or not members else None)
            states.append(state.replace(**dict.fromkeys(ON_DEVICE)) if members else state)
            yield state

    if members is None:
        joint, newest = None, [newest[m] for m, _ in enumerate(whole())]
    else:
        joint = members.joined(whole())
        newest = members.stacked(newest) if overlap else joint.policy
    p = Population(
        runs=tuple(runs),
        members=members,
        stop=seats[0].control.stop,
        ended=lambda m, error: note_end(seats[m], error),
    )
    return p, Together(states=tuple(states), steps=tuple(steps), newest=newest, joint=joint, over={})


def note_end(seat: Opened, error: Diverged) -> None:
    """Of a member that has diverged, at once: whatever ends the others, the next start leaves it out."""
    seat.sinks.note(str(error))
    with contextlib.suppress(WriteFailed):
        seat.run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())


def close(seats: Sequence[Opened], p: Population, states: Together) -> None:
    """Says how each member has ended. Raises WriteFailed, once all are closed, if rows of one were lost."""
    failure = None
    for m in states.going:
        try:
            wind_up(seats[m], p.runs[m], states.states[m].counters)
        except WriteFailed as error:
            seats[m].run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
            failure = failure or error
    if failure:
        raise failure


def dry_run(command: Command, machine: Machine, say: Callable[[str], None]) -> None:
    """Builds everything, does one step of each phase, tells sizes and units; writes nothing."""
    with contextlib.ExitStack() as stack:
        members, env = with_environments(stack, present(commands_of(command), machine), machine)
        configs = [x.config for x in members.values()]
        parts = of_each(assemble(configs[0], one_device(machine), env[0]), configs, env)
        layout = layout_of(parts, machine)
        check_memory(parts, layout, command.config)
        for line in (*banner(parts[0], None, None), words(len(parts), layout, machine), "compiling ..."):
            say(line)
        if layout is None:
            programs, jointly = compiled(parts[0], env[0]), None
            process = rehearsed(parts[0], programs, env[0])
        else:
            together = Members(parts, layout)
            jointly = {name: x.demand.fresh for name, x in together.compiled.items()}
            programs, highest = together.of[0], runtime.peak_memory()
            rehearse_jointly(together, parts, env)
            process = Process(runtime.resident_memory(), highest)
        share = len(parts) // (layout.count if layout else 1)
        for line in memory.table(parts[0], programs, env[0], process, share, jointly):
            say(line)
        say("one step of each phase was done; nothing was written")


def rehearse_jointly(members: Members, parts: Sequence[Parts], env: Sequence[CheckedEnv]) -> None:
    """Acting, a step of the environments, insertion, an update, an evaluation step, a flush."""
    n = parts[0].config.env.num_envs
    steps = [x.reset() for x in env]
    joint = members.joined(saving.fresh_state(one, n) for one in members.of)
    carry, counter = members.eval_carry(), members.stacked([np.int32(0)] * len(parts))
    if parts[0].eval_envs == n:
        members.eval_act(joint.policy, carry, counter, steps)
    if "act" in members.compiled:
        joint, action = members.act(joint, steps)
        for one, chosen in zip(env, jax.device_get(action), strict=True):
            one.send(chosen)
            one.recv()
        if parts[0].learner.update is not None:
            joint, _ = members.learn(joint, Due(1, 0, 0))
    jax.device_get(joint.totals)
