"""The tables of Atari-100k: what runs have scored game by game and over games, beside what is published."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxrl import aggregate
from jaxrl.aggregate import Estimate
from jaxrl.reading import Past
from jaxrl.report.foreign import Curve
from jaxrl.report.protocol import (
    ENOUGH,
    EVALUATED,
    PROTOCOLS,
    TRAINED,
    WINDOW,
    Outcome,
    Protocol,
    departures,
    trained_abroad,
)
from jaxrl.report.published import RECALLED, published
from jaxrl.report.table import Table

SHOWN = ("DreamerV3 2023", "DreamerV3 Nature", "Hieros (recalled)")  # published, game by game
NONE = "-"  # a cell that has no number
TOLD = 3  # names that a note tells
LUCKY = "atari_up_n_down"  # a published score of one episode
STATISTICS = {
    "mean": "mean",
    "median": "median",
    "iqm": "IQM over runs",
    "iqm_of_means": "IQM over game means",
    "gap": "optimality gap over runs",
    "gap_of_means": "optimality gap over game means",
}
OF_RUNS = ("iqm", "gap")  # what game means alone cannot tell
OTHERS = (
    "Published scores follow their systems' own protocols: DreamerV3 is scored by training returns in the "
    "last 10k frames, IRIS, Simulus and TWISTER by 100 evaluation episodes of the final policy, STORM by 20. "
    "Of each game only the mean is known here: no interval, and nothing over runs."
)


@dataclasses.dataclass(frozen=True)
class System:
    """Runs that are one thing: of one group, with the same departures from the benchmark."""

    name: str
    departures: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def label(self) -> str:
        if not self.departures:
            return self.name
        return f"{self.name} (not the benchmark: {', '.join(self.departures)})"

    @functools.cached_property
    def scores(self) -> dict[str, list[float]]:
        """Scores of the runs that count, by task, in the order of the published ones."""
        found = {task: [x.score for x in self.outcomes if x.task == task] for task in published().random}
        counted = {task: [x for x in scores if x is not None] for task, scores in found.items()}
        return {task: scores for task, scores in counted.items() if scores}

    def matrix(self, games: Sequence[str]) -> np.ndarray:
        """[runs, games], human-normalised."""
        scores = self.scores
        return aggregate.matrix({x: [published().normalised(x, y) for y in scores[x]] for x in games})


def tables(groups: Mapping[str, Sequence[Past]], peers: Sequence[Curve] = ()) -> list[Table]:
    """For either protocol: scores by game, statistics over games, who beats whom.

    Runs of one group that depart from the benchmark, in fewer steps say, are shown apart from the others,
    with what it is in the name. Statistics of all systems are over the same games: those that a group has
    played, and of these once more those that every published system has.

    Args:
      groups: label -> runs, one or more of each game. Those of other tasks are passed over.
      peers: curves of other programs, which have training returns only.

    Returns:
      [] if nothing is of a game of Atari-100k.
    """
    found = []
    for protocol in PROTOCOLS:
        systems = systems_of(groups, peers, protocol)
        scored = [system for system in systems if system.scores]
        if systems:
            found.append(by_game(protocol, systems))
        found += [over_games(protocol, scored, games) for games in game_sets(scored)]
        if duels := pairs(scored):
            found.append(improvements(protocol, duels))
    return found


def systems_of(
    groups: Mapping[str, Sequence[Past]], peers: Sequence[Curve], protocol: Protocol
) -> list[System]:
    """Runs of the games of Atari-100k with their scores."""
    found = []
    for name, runs in groups.items():
        parts: dict[tuple[str, ...], list[Outcome]] = {}
        for run in runs:
            if run.task in published().random:
                parts.setdefault(departures(run, protocol), []).append(protocol.score(run))
        found += [System(name, broken, tuple(outcomes)) for broken, outcomes in parts.items()]
    of_games = [curve for curve in peers if curve.task in published().random and protocol is TRAINED]
    for name in dict.fromkeys(curve.group for curve in of_games):
        outcomes, broken = trained_abroad([curve for curve in of_games if curve.group == name])
        found.append(System(name, broken, tuple(outcomes)))
    return found


def by_game(protocol: Protocol, systems: Sequence[System]) -> Table:
    """A row for each game that was played."""
    reference = published()
    played = {x.task for system in systems for x in system.outcomes}
    scored = [system for system in systems if system.scores]
    columns = ["game", "random", "human"]
    columns += [name for system in scored for name in (system.label, "runs", "HNS")] + list(SHOWN)
    rows = []
    for task in reference.random:
        if task in played and scored:
            cells = [game(task), f"{reference.random[task]:,.1f}", f"{reference.human[task]:,.1f}"]
            cells += [cell for system in scored for cell in cells_of(system, task)]
            known = (reference.systems[name].get(task) for name in SHOWN)
            cells += [NONE if score is None else f"{score:,.1f}" for score in known]
            rows.append(tuple(cells))
    notes = [note for system in systems for note in remarks(protocol, system)]
    if scored:
        notes.append("HNS: human-normalised score, (score - random) / (human - random).")
        notes += recalled(SHOWN)
    return Table(f"Atari-100k: {protocol.name}", tuple(columns), rows, notes)


def cells_of(system: System, task: str) -> tuple[str, str, str]:
    """Score, number of runs, HNS."""
    scores = system.scores.get(task, [])
    runs = sum(x.task == task for x in system.outcomes)
    count = f"{len(scores)} of {runs}" if len(scores) < runs else str(runs)
    if not scores:
        return NONE, count if runs else NONE, NONE
    score = float(np.mean(scores))
    return f"{score:,.1f}", count, f"{published().normalised(task, score):.3f}"


def remarks(protocol: Protocol, system: System) -> list[str]:
    """What must be known about the scores of a system."""
    label, runs = system.label, system.outcomes
    kept, lost = [x for x in runs if x.score is not None], [x for x in runs if x.score is None]
    found = []
    if lost and protocol is EVALUATED:
        found.append(
            f"{label}: {len(lost)} of {counted(runs)} without an evaluation ({some(x.name for x in lost)}); "
            f"python -m jaxrl.evaluate RUN --which=latest --episodes={ENOUGH}"
        )
    elif lost:
        found.append(
            f"{label}: {len(lost)} of {counted(runs)} left out of the mean, since no episode ended in the "
            f"last {WINDOW:,} env_steps ({some(x.name for x in lost)})."
        )
    few = [x for x in kept if x.episodes < ENOUGH]
    if few and protocol is EVALUATED:
        found.append(
            f"{label}: {len(few)} of {counted(runs)} evaluated with fewer than {ENOUGH} episodes "
            f"({span([x.episodes for x in few])})."
        )
    if early := [x for x in kept if not x.is_last]:
        told = some(f"{x.name} at {x.step:,}" for x in early)
        found.append(f"{label}: {len(early)} of {counted(runs)} evaluated before the end only ({told}).")
    if again := {x.task for x in runs if x.seed is not None and sum(same(x, y) for y in runs) > 1}:
        told = some(game(task) for task in sorted(again))
        found.append(f"{label}: a seed more than once ({told}); every run counts as one.")
    return found


def same(one: Outcome, other: Outcome) -> bool:
    return (one.task, one.seed) == (other.task, other.seed)


def game_sets(systems: Sequence[System]) -> list[tuple[str, ...]]:
    """Sets of games to compare over: what each system has, and of that what all published ones have."""
    found = []
    for system in systems:
        games = tuple(system.scores)
        common = tuple(x for x in games if not lacking([x]))
        found += [games, *([common] if common else [])]
    return list(dict.fromkeys(found))


def lacking(games: Sequence[str]) -> dict[str, list[str]]:
    """{published system: the games that it has no score of}."""
    missing = {name: [x for x in games if x not in scores] for name, scores in published().systems.items()}
    return {name: tasks for name, tasks in missing.items() if tasks}


def over_games(protocol: Protocol, systems: Sequence[System], games: Sequence[str]) -> Table:
    """Statistics of every system that has all the games, then of the published ones."""
    own = [system for system in systems if set(games) <= set(system.scores)]
    rows = []
    for system in own:
        runs = system.matrix(games)
        rows.append(row_of(system.label, runs, str(len(games)), str(int(np.isfinite(runs).sum()))))
    for name, scores in published().systems.items():
        if there := [x for x in games if x in scores]:
            means = np.array([[published().normalised(x, scores[x]) for x in there]])
            size = str(len(there)) if len(there) == len(games) else f"{len(there)} of {len(games)}"
            rows.append(row_of(name, means, size, NONE))
    total = len(published().random)
    some_only = "" if len(games) == total else f" of {total}"
    title = f"Atari-100k, human-normalised, over {len(games)}{some_only} games: {protocol.name}"
    columns = ("system", "games", "runs", *STATISTICS.values(), "games at human level")
    notes = [*scope(games), *sureness(own, games), OTHERS, *recalled(published().systems)]
    return Table(title, columns, rows, notes)


def row_of(name: str, scores: np.ndarray, games: str, runs: str) -> tuple[str, ...]:
    """A row of statistics; those over runs only where the number of runs is known."""
    found = aggregate.estimates(scores)
    cells = [NONE if runs == NONE and key in OF_RUNS else shown(found[key]) for key in STATISTICS]
    return name, games, runs, *cells, str(int((aggregate.game_means(scores) >= 1).sum()))


def shown(estimate: Estimate) -> str:
    value = f"{estimate.value:.3f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} ({estimate.low:.2f} to {estimate.high:.2f})"


def scope(games: Sequence[str]) -> list[str]:
    """Which games a table is about, where that is not all of them."""
    found = []
    left_out = [x for x in published().random if x not in games]
    if 0 < len(left_out) <= TOLD:
        found.append(f"All systems over the same games, without {', '.join(map(game, left_out))}.")
    elif left_out:
        found.append(f"All systems over the same games, those played: {', '.join(map(game, games))}.")
    for name, tasks in lacking(games).items():
        rest = "its row is over the others" if len(tasks) < len(games) else "it is left out"
        found.append(f"{name} has no score of {', '.join(map(game, tasks))}: {rest}.")
    if LUCKY in games:
        found.append(f"The score of {game(LUCKY)} of DreamerV3 Nature is one episode of one seed.")
    return found


def sureness(systems: Sequence[System], games: Sequence[str]) -> list[str]:
    """What the intervals are."""
    counts = [[len(system.scores[x]) for x in games] for system in systems]
    if not any(n > 1 for runs in counts for n in runs):
        return ["No intervals: no game was played by two runs of one group."]
    found = [
        f"In brackets: {100 * aggregate.LEVEL:g} % intervals of a bootstrap over runs within each game, "
        f"{aggregate.RESAMPLES:,} resamples; what other runs of the same games would give."
    ]
    for system, runs in zip(systems, counts, strict=True):
        if min(runs) < aggregate.FEWEST and max(runs) > 1:
            found.append(f"{system.label}: the interval is too narrow, with {span(runs)} runs of a game.")
        if min(runs) < max(runs):
            found.append(f"{system.label}: over runs, every run counts alike; games with more count more.")
    return found


def recalled(names: Iterable[str]) -> list[str]:
    is_marked = any(name.endswith(RECALLED) for name in names)
    return [f"{RECALLED}: as remembered from the paper, not copied from a file."] if is_marked else []


def pairs(systems: Sequence[System]) -> list[tuple[System, System, list[str]]]:
    """Any two systems and the games that both have."""
    ordered = [(one, other) for i, one in enumerate(systems) for other in systems[i + 1 :]]
    found = [(one, other, [x for x in one.scores if x in other.scores]) for one, other in ordered]
    return [(one, other, games) for one, other, games in found if games]


def improvements(protocol: Protocol, duels: Sequence[tuple[System, System, list[str]]]) -> Table:
    """How likely a run of one system beats one of another."""
    rows = []
    for one, other, games in duels:
        chance = aggregate.improvement_estimate(one.matrix(games), other.matrix(games))
        rows.append((f"{one.label} over {other.label}", str(len(games)), shown(chance)))
    notes = ["The chance that a run of the first beats one of the second in the same game, mean over games."]
    return Table(f"Atari-100k, who beats whom: {protocol.name}", ("pair", "games", "chance"), rows, notes)


def game(task: str) -> str:
    return task.removeprefix("atari_")


def counted(runs: Sequence[Outcome]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def span(counts: Sequence[int]) -> str:
    return f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else str(counts[0])


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    told = list(names)
    more = [f"{len(told) - TOLD} more"] if len(told) > TOLD else []
    return ", ".join([*told[:TOLD], *more])
