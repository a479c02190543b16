"""A population from end to end: several independent runs, of a seed and a task each, in one process.

Each member has its own run directory, `<logdir>/<task>-<seed>`, which is that of a single run in everything:
it can be continued alone, looked at, compared. All are at the same step at every moment.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax

from jaxrl import abreast, changes, lockstep, rundir, runtime
from jaxrl.assembly import assemble, compiled
from jaxrl.changes import Origin
from jaxrl.config import Config, ConfigError, Value, replace, to_dict
from jaxrl.envs.base import CheckedEnv
from jaxrl.exits import Diverged, WriteFailed
from jaxrl.flags import Command
from jaxrl.layout import Layout
from jaxrl.lockstep import Population, Together
from jaxrl.members import ON_DEVICE, Members
from jaxrl.parts import Parts
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
    training_env,
    wind_up,
)
from jaxrl.start import Start, start_of
from jaxrl.state import RunState
from jaxrl.stores import Checkpoint, Stores
from jaxrl.telling import finished

MOST = 1_024  # members


def commands_of(command: Command) -> dict[str, Command]:
    """The command of each member by its name, as if each were given alone.

    Raises:
      ConfigError: if there is no member or one twice, or the folder holds a run of its own.
    """
    config, origin = command.config, command.origin
    if origin.path is not None:
        raise ConfigError(
            f"logdir={config.logdir}: holds a run of its own; --seeds and --tasks make a folder for each "
            "member, so choose another"
        )
    tasks, seeds = config.tasks.split(",") if config.tasks else [config.task], numbers(config)
    found = {f"{task}-{seed}": {"task": task, "seed": seed} for task in tasks for seed in seeds}
    if len(found) < len(tasks) * len(seeds):
        raise ConfigError(f"seeds={config.seeds}, tasks={config.tasks}: one is named twice; name each once")
    if len(found) > MOST:
        raise ConfigError(f"seeds={config.seeds}: {len(found)} members are more than {MOST}; name fewer")
    home = home_of(config, command.preset)
    given = {k: x for k, x in origin.given.items() if k not in ("seeds", "tasks")}
    return {
        name: alone(command, given | own | {"logdir": str(home / name)}, profiles=not number)
        for number, (name, own) in enumerate(found.items())
    }


def numbers(config: Config) -> list[int]:
    """The seeds: of 0,2,5-7 these are 0, 2, 5, 6, 7."""
    if not config.seeds:
        return [config.seed]
    found = []
    for part in config.seeds.split(","):
        first, _, last = part.partition("-")
        if int(last or first) < int(first) or int(last or first) - int(first) > MOST:
            raise ConfigError(f"seeds={config.seeds}: {part} is no range of seeds; for example seeds=0-4")
        found += range(int(first), int(last or first) + 1)
    return found


def home_of(config: Config, preset: str) -> pathlib.Path:
    """The folder of all members' run directories."""
    if config.logdir:
        return rundir.located("logdir", config.logdir)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return rundir.unused(pathlib.Path("runs").resolve() / preset / f"population-{stamp}")


def alone(command: Command, given: dict[str, Value], profiles: bool) -> Command:
    """The command of one member. Only one may trace a profile at a time."""
    given = given if profiles else given | {"profile": ""}
    origin = Origin(config=command.origin.config, given=given, preset=command.preset)
    origin = rundir.origin_of(origin, command.named)
    config = replace(origin.config, dict(origin.given) | {"seeds": "", "tasks": ""})
    notes = (*origin.notes, *changes.lines(origin, config))
    return dataclasses.replace(command, config=config, origin=origin, notes=notes, preset=origin.preset)


def train(command: Command, machine: Machine, argv: list[str], control: Control) -> bool:
    """Starts or continues a population; see `session.train`. True if all came to their last step.

    Raises:
      Diverged: members have; the others came as far as they could.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        members = present(commands_of(command), machine)
        env = [stack.enter_context(training_env(x.config, 0)) for x in members.values()]
        check_alike(members, env)
        alone = one_device(machine)
        configs = [x.config for x in members.values()]
        parts = of_each(assemble(configs[0], alone, env[0]), configs)
        layout = layout_of(parts[0], machine, len(members))
        check_memory(parts, layout)
        run_dirs, stores = opened(stack, members, parts, control)
        starts, parts = begun(members, stores, parts, env[0])
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
            introduce_all(seats, layout)
            control.faults.at("compile")
            p, states = started(stack, seats, layout, began)
            states = lockstep.run(p, states, abreast.gather_of(p) if layout else lockstep.in_turn)
            close(seats, p, states)
    if states.over:
        names = ", ".join(list(members)[m] for m in sorted(states.over))
        raise Diverged(f"{len(states.over)} of {len(members)} members have diverged ({names})")
    return finished(configs[0], states.counters)


def present(members: dict[str, Command], machine: Machine) -> dict[str, Command]:
    """With resolved configs, and without those that have diverged before. Raises Diverged if all have."""
    left = {}
    for name, command in members.items():
        path = pathlib.Path(command.config.logdir)
        ended = rundir.ending_of(path) if command.origin.saved is not None else ""
        if not ended.startswith(Diverged.__name__):
            left[name] = dataclasses.replace(command, config=runtime.resolve(command.config, machine))
    if not left:
        raise Diverged(
            f"all {len(members)} members have diverged; start again with a lower --opt.lr elsewhere"
        )
    return left


def check_alike(members: dict[str, Command], env: Sequence[CheckedEnv]) -> None:
    """Raises ConfigError if the members' settings differ in more than seed and task, or their spaces do."""
    own = ("seed", "task", "logdir", "profile")
    (first, one), *others = ((name, to_dict(x.config)) for name, x in members.items())
    for (name, config), there in zip(others, env[1:], strict=True):
        if differ := [k for k in one if one[k] != config[k] and k not in own]:
            raise ConfigError(
                f"{differ[0]}: {first} has {one[differ[0]]} and {name} has {config[differ[0]]}; "
                f"continue them alone, each by its --logdir"
            )
        if there.spaces != env[0].spaces:
            raise ConfigError(f"tasks: {first} and {name} differ in what is seen or done there; name others")


def one_device(machine: Machine) -> Machine:
    """For the programs of one member."""
    return dataclasses.replace(machine, layout=Layout(machine.layout.devices[:1]))


def of_each(parts: Parts, configs: Sequence[Config]) -> list[Parts]:
    """The parts of each member, from those of one: all but the key is shared."""
    keys = [jax.device_put(jax.random.key(x.seed), parts.machine.layout.whole) for x in configs]
    return [dataclasses.replace(parts, config=x, key=key) for x, key in zip(configs, keys, strict=True)]


def layout_of(parts: Parts, machine: Machine, count: int) -> Layout | None:
    """The devices over which members are divided that one program learns for; None: one after another.

    On a CPU they take turns: XLA has no fast convolution there for weights that differ from member to member.
    """
    config, wish = parts.config, parts.config.runtime.population
    need = "replay.holdout" if config.replay.holdout else ""
    need = "replay.placement" if config.replay.placement == "host" else need
    if wish == "joint" and need:
        raise ConfigError(f"runtime.population=joint: {need} needs each member alone; leave one of them out")
    if wish == "turns" or need or (wish == "auto" and machine.platform == "cpu"):
        return None
    most = max(k for k in range(1, machine.count + 1) if count % k == 0)
    return Layout(machine.layout.devices[:most])


def check_memory(parts: Sequence[Parts], layout: Layout | None, scratch: int = 0) -> None:
    """Raises ConfigError if replay, learners and scratch of all members do not fit, naming how many do.

    Args:
      scratch: bytes of the largest program on a device, for its share of the members.
    """
    first, devices = parts[0], layout.count if layout else 1
    state = jax.eval_shape(first.learner.init, first.key)
    each = first.replay.nbytes + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    share = len(parts) // devices
    each += scratch // share if layout else 0
    fits = int(0.9 * first.machine.memory - (0 if layout else scratch)) // each * devices
    if fits < len(parts):
        remedy = f"{fits} fit" if fits > 0 else "not even one fits"
        raise ConfigError(
            f"seeds={first.config.seeds or len(parts)}: {len(parts)} members need "
            f"{each * share / 1e9:.1f} GB of the {first.machine.memory / 1e9:.1f} GB of each device; "
            f"{remedy}: name fewer, or lower --replay.capacity or --batch_size"
        )


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
        stores.append(stack.enter_context(opened_stores(run_dir, command.config, control.faults)))
    return run_dirs, stores


def begun(
    members: dict[str, Command], stores: Sequence[Stores | None], parts: Sequence[Parts], env: CheckedEnv
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
        parts = of_each(assemble(parts[0].config, parts[0].machine, env, saved), [x.config for x in parts])
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
            at = ", ".join(
                f"{name} {max(x.steps(None), default='none')}" for name, x in zip(names, known, strict=True)
            )
            raise ConfigError(
                f"logdir: the members have no checkpoint of the same step ({at}); continue each alone"
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
    """Notes in every run.json what has ended all of them."""
    try:
        yield
    except BaseException as error:
        for run_dir in run_dirs:
            with contextlib.suppress(WriteFailed):
                run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
        raise


def introduce_all(seats: Sequence[Opened], layout: Layout | None) -> None:
    """The first member's banner, and what the others have to say."""
    how = "each in turn" if layout is None else "in one program"
    how += f" on {layout.count} devices" if layout and layout.count > 1 else ""
    introduce(seats[0], f"population {len(seats)} members, {how}: {seats[0].run_dir.path.parent}")
    for seat in seats[1:]:
        for line in seat.start.remarks:
            seat.sinks.note(line)


def started(
    stack: contextlib.ExitStack, seats: Sequence[Opened], layout: Layout | None, began: float
) -> tuple[Population, Together]:
    """Compiles, and begins every member."""
    parts, members = [x.parts for x in seats], None
    if layout is None:
        single = compiled(parts[0], seats[0].env)
        programs = [single.of(x) for x in parts]
    else:
        members = Members(parts, layout)
        check_memory(parts, layout, max(x.temp_bytes for x in members.compiled.values()))
        programs = members.of
    compile_s, overlap = time.monotonic() - began, parts[0].config.overlap
    runs, states, steps, newest = [], [], [], []

    def whole() -> Iterator[RunState]:
        for seat, one in zip(seats, programs, strict=True):
            machinery, state, step = ready(stack, seat, one, compile_s)
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
    p = Population(runs=tuple(runs), members=members, stop=seats[0].control.stop)
    return p, Together(states=tuple(states), steps=tuple(steps), newest=newest, joint=joint, over={})


def close(seats: Sequence[Opened], p: Population, states: Together) -> None:
    """Says how each member ended. Raises WriteFailed if rows were lost."""
    for m, (seat, machinery) in enumerate(zip(seats, p.runs, strict=True)):
        if error := states.over.get(m):
            seat.run_dir.note(exit=f"{type(error).__name__}: {error}", ended=rundir.now())
            seat.sinks.note(str(error))
        else:
            wind_up(seat, machinery, states.states[m].counters)
