"""The random agent on the 26 games of Atari-100k, by the trainer's own evaluation, and published scores.

    nice python -m benchmarks.random_scores --out benchmarks/results/random_scores.json
    python -m benchmarks.random_scores --games pong breakout --episodes 100 --only_atari100k

Every game is played under the rules of the preset atari100k and under those of the paper that the published
scores come from (SOURCE). Whether a score agrees is judged by z, the difference over its standard error. The
error of a published mean is not published; it is taken as that of 30 episodes (the paper's number) with our
variance. Games with |z| > 2 are played again under each of VARIANTS.

Prints one JSON record; beside --out, a Markdown file of the same name holds the tables.
"""

import argparse
import contextlib
import csv
import functools
import math
import pathlib
import statistics
import sys
import time
from typing import Any

from benchmarks import record
from jaxrl import flags, runtime
from jaxrl.config import Config, Value, replace
from jaxrl.envs.games import ATARI100K

PUBLISHED = pathlib.Path(__file__).with_name("atari100k_random.csv")
PUBLISHED_EPISODES = 30
SIGNIFICANT = 2.0
SOURCE: dict[str, Value] = {"env.action_repeat": 6, "env.time_limit": 18_000}  # 10 Hz, 5 minutes
VARIANTS: dict[str, dict[str, Value]] = {
    "source's rules, 18 actions": SOURCE | {"env.full_actions": True},
    "18 actions": {"env.full_actions": True},
    "no no-ops": {"env.noops": 0},
    "FIRE at the start": {"env.fire_reset": True},
    "sticky actions": {"env.sticky": 0.25},
}
WHY = """\
The published scores go back to Mnih et al. 2015, "Human-level control through deep reinforcement learning".
Their random agent "chose a random action at 10 Hz which is every sixth frame, repeating its last action on
intervening frames"; games were cut after 5 minutes. Atari-100k decides on every fourth frame (15 Hz), and
games last up to 30 minutes. The paper itself names Boxing, Breakout, Crazy Climber, Demon Attack and Krull as
games whose random score depends on that rate. So two scores are shown for each game: under the rules of
Atari-100k, which the trainer uses, and under those of the source (`--env.action_repeat=6
--env.time_limit=18000`), which the published number is to be compared with. Under either, 1 game in 20 lies
beyond |z| = 2 by chance.
"""


def main() -> None:
    args = arguments()
    config = replace(flags.load_preset("atari100k"), settings(args))
    runtime.prepare(config)
    head, began = record.start("random_scores"), time.monotonic()
    published = load_published()
    tasks = [f"atari_{game.removeprefix('atari_')}" for game in args.games] or list(ATARI100K)
    machine = runtime.start(config)

    def score(task: str, rules: str, changes: dict[str, Value]) -> dict[str, Any]:
        episodes = play(replace(config, changes | {"task": task}), machine)
        return row_of(task, rules, published[task], episodes)

    rows = [score(task, "atari100k", {}) for task in tasks]
    differing = [row["task"] for row in rows if not row["agrees"]]
    more = not args.only_atari100k
    source = [score(task, "source", SOURCE) for task in tasks] if more else []
    variants = {
        name: [score(task, name, changes) for task in differing] for name, changes in VARIANTS.items() if more
    }
    found = {
        "episodes": args.episodes,
        "settings": args.set,
        "wall_s": round(time.monotonic() - began, 1),
        "agree": sum(row["agrees"] for row in rows),
        "agree_source": sum(row["agrees"] for row in source) if source else None,
        "games": rows,
        "source": source,
        "variants": variants if differing else {},
    }
    found = record.finish(head | found, args.out)
    if args.out:
        args.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", nargs="+", default=[], help="default: all 26")
    parser.add_argument("--episodes", type=int, default=40, help="of each game")
    parser.add_argument("--envs", type=int, default=8, help="played side by side")
    parser.add_argument("--threads", type=int, default=2, help="of the simulator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--only_atari100k", action="store_true", help="no other rules")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file, and tables")
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict[str, Value]:
    """What differs from the preset atari100k; nothing of it changes the game."""
    changes: dict[str, Value] = {
        "agent": "random",
        "device": "cpu",
        "seed": args.seed,
        "eval_eps": args.episodes,
        "eval.num_envs": min(args.envs, args.episodes),
        "env.threads": args.threads,
        "runtime.compile_cache": "off",
    }
    pairs = (text.partition("=") for text in args.set)
    return changes | {name: flags.parse_override(name, value) for name, _, value in pairs}


@functools.cache
def load_published() -> dict[str, float]:
    """Mean score by task."""
    with open(PUBLISHED, encoding="utf-8") as file:
        rows = csv.DictReader(line for line in file if not line.startswith("#"))
        return {row["task"]: float(row["random"]) for row in rows}


def play(config: Config, machine: runtime.Machine) -> list[tuple[float, int]]:
    """(score, length in agent_steps) of `config.eval_eps` episodes, played as the trainer evaluates."""
    from jaxrl import envs, session
    from jaxrl.evaluation import evaluate
    from jaxrl.programs import Programs

    config = runtime.resolve(config, machine)
    with contextlib.closing(envs.make(config.task, config.env, num_envs=1, seed=0)) as env:
        programs = Programs(parts := session.assemble(config, machine, env))
    report = evaluate(config, programs, programs.policy(programs.init()), parts.key, 0)
    return [(x.score, x.length) for x in report.episodes]


def row_of(task: str, rules: str, published: float, episodes: list[tuple[float, int]]) -> dict[str, Any]:
    """One game's line of the record; also told on stderr, since all games take minutes."""
    scores, n = [score for score, _ in episodes], len(episodes)
    deviation = statistics.stdev(scores) if n > 1 else 0.0
    error = deviation / math.sqrt(n)
    z = z_score(statistics.fmean(scores) - published, deviation, n)
    row = {
        "task": task,
        "rules": rules,
        "n": n,
        "mean": round(statistics.fmean(scores), 3),
        "error": round(error, 3),
        "median": statistics.median(scores),
        "least": min(scores),
        "most": max(scores),
        "agent_steps": round(statistics.fmean(length for _, length in episodes), 1),
        "published": published,
        "z": round(z, 2),
        "agrees": abs(z) <= SIGNIFICANT,
    }
    numbers = f"{row['mean']:10.2f} +- {error:7.2f}  published {published:9.1f}  z {z:6.2f}"
    print(f"{task:22} {rules:30} {numbers}", file=sys.stderr, flush=True)
    return row


def z_score(difference: float, deviation: float, n: int) -> float:
    """The difference of two means, of n and PUBLISHED_EPISODES episodes of one deviation, in errors."""
    error = deviation * math.sqrt(1 / n + 1 / PUBLISHED_EPISODES)
    if difference == 0:
        return 0.0
    return difference / error if error else math.copysign(math.inf, difference)


def markdown(found: dict[str, Any]) -> str:
    """The tables of a record."""
    count = len(found["games"])
    agree = f"{found['agree']} of {count} games agree with the published score under the rules of Atari-100k"
    if found["source"]:
        agree += f", {found['agree_source']} of {count} under those of its source"
    return "\n".join(
        [
            "# Scores of the random agent",
            "",
            f"Command: `python -m benchmarks.random_scores {' '.join(found['argv'])}` ({found['time']}, "
            f"EnvPool {found['versions'].get('envpool', '?')}, record {found['id']}): mean ± standard error "
            f"of {found['episodes']} episodes, played by the trainer's own evaluation with `--agent=random`.",
            "",
            f"**{agree}** (|z| <= {SIGNIFICANT:g}; z is the difference over its standard error, "
            f"{PUBLISHED_EPISODES} episodes taken for the published mean).",
            "",
            WHY,
            *games_table(found),
            *variants_table(found),
            "",
        ]
    )


def games_table(found: dict[str, Any]) -> list[str]:
    """One line a game."""
    lines = ["| game | published | Atari-100k rules | z | source's rules | z |", "|---|---|---|---|---|---|"]
    source = {row["task"]: row for row in found["source"]}
    for row in found["games"]:
        cells = [row["task"].removeprefix("atari_"), f"{row['published']:g}", shown(row), judged(row)]
        other = source.get(row["task"])
        lines.append("| " + " | ".join([*cells, shown(other), judged(other)] if other else cells) + " |")
    return lines


def variants_table(found: dict[str, Any]) -> list[str]:
    """The games that differ, one column for each other set of rules."""
    names, base = list(found["variants"]), {row["task"]: row for row in found["games"]}
    if not names:
        return []
    lines = ["", "The games that differ under Atari-100k rules, under others (z in brackets):", ""]
    lines += [f"| game | published | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for at, first in enumerate(found["variants"][names[0]]):
        rows = [found["variants"][name][at] for name in names]
        cells = [first["task"].removeprefix("atari_"), f"{base[first['task']]['published']:g}"]
        lines.append("| " + " | ".join([*cells, *(f"{shown(row)} ({judged(row)})" for row in rows)]) + " |")
    return lines


def judged(row: dict[str, Any]) -> str:
    z = "infinite" if row["z"] is None else f"{row['z']:.1f}"
    return z if row["agrees"] else f"**{z}**"


def shown(row: dict[str, Any]) -> str:
    digits = 1 if abs(row["mean"]) < 1000 else 0
    return f"{row['mean']:.{digits}f} ± {row['error']:.{digits}f}"


if __name__ == "__main__":
    main()
