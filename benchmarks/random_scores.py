"""The random agent on the 26 games of Atari-100k, by the trainer's own evaluation, and published scores.

    nice python -m benchmarks.random_scores --out benchmarks/results/random_scores.json
    python -m benchmarks.random_scores --games pong breakout --episodes 100 --only_atari100k

Every game is played under the rules of the preset atari100k and under those of the paper that the published
scores come from; where they differ even then, also with all 18 actions. A score is judged by z, the
difference over its standard error. The error of a published mean is not published; it is taken as that of 30
episodes, the paper's number. The deviation of a game is the largest under any of the rules, since a sample
may lack the rare large rewards that make most of it.

Prints one JSON record; beside --out, a Markdown file of the same name holds the table. The same command
continues an interrupted run that had --out.
"""

import argparse
import contextlib
import csv
import functools
import json
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
RULES: dict[str, dict[str, Value]] = {
    "atari100k": {},
    "source": SOURCE,
    "source_18_actions": SOURCE | {"env.full_actions": True},
}
WHY = """\
The published scores go back to Mnih et al. 2015, "Human-level control through deep reinforcement learning".
Their random agent "chose a random action at 10 Hz which is every sixth frame, repeating its last action on
intervening frames"; games were cut after 5 minutes. Atari-100k decides on every fourth frame (15 Hz), and
games last up to 30 minutes. The paper itself names Boxing, Breakout, Crazy Climber, Demon Attack and Krull as
games whose random score depends on that rate. So each game is shown under the rules of Atari-100k, which the
trainer uses, and under those of the source (`--env.action_repeat=6 --env.time_limit=18000`), which the
published number is to be compared with. By chance alone, 1 game in 20 lies beyond |z| = 2.
"""


def main() -> None:
    args = arguments()
    config = replace(flags.load_preset("atari100k"), settings(args))
    runtime.prepare(config)
    head, began = record.start("random_scores"), time.monotonic()
    tasks = [f"atari_{game.removeprefix('atari_')}" for game in args.games] or list(ATARI100K)
    machine = runtime.start(config)
    done = {game["task"]: game for game in kept(args)}
    for task in tasks:
        if task not in done:
            done[task] = score(replace(config, {"task": task}), machine, args.only_atari100k)
        if args.out:
            record.write(partial_file(args), {"settings": given(args), "games": list(done.values())})
    games = [done[task] for task in tasks]
    found = given(args) | {
        "wall_s": round(time.monotonic() - began, 1),
        "agree": {rules: sum(game[rules]["agrees"] for game in games if rules in game) for rules in RULES},
        "games": games,
    }
    found = record.finish(head | found, args.out)
    if args.out:
        args.out.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
        partial_file(args).unlink()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", nargs="+", default=[], help="default: all 26")
    parser.add_argument("--episodes", type=int, default=60, help="of each game, under each rules")
    parser.add_argument("--envs", type=int, default=8, help="played side by side")
    parser.add_argument("--threads", type=int, default=2, help="of the simulator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of the trainer")
    parser.add_argument("--only_atari100k", action="store_true", help="no other rules")
    parser.add_argument("--out", type=pathlib.Path, help="also write the record to this file, and tables")
    return parser.parse_args()


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What the scores depend on."""
    return {name: getattr(args, name) for name in ("episodes", "envs", "seed", "set", "only_atari100k")}


def partial_file(args: argparse.Namespace) -> pathlib.Path:
    return args.out.with_suffix(".partial.json")


def kept(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Games that an interrupted run with the same --out and settings has played."""
    if not args.out or not partial_file(args).exists():
        return []
    found = json.loads(partial_file(args).read_text(encoding="utf-8"))
    return found["games"] if found["settings"] == given(args) else []


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
    from jaxrl import assembly, envs
    from jaxrl.evaluation import evaluate
    from jaxrl.programs import Programs

    config = runtime.resolve(config, machine)
    with contextlib.closing(envs.make(config.task, config.env, num_envs=1, seed=0)) as env:
        programs = Programs(parts := assembly.assemble(config, machine, env))
    report = evaluate(config, programs, programs.policy(programs.init()), parts.key, 0)
    return [(x.score, x.length) for x in report.episodes]


def score(config: Config, machine: runtime.Machine, only_atari100k: bool) -> dict[str, Any]:
    """One game under the rules that are asked for; also told on stderr, since all games take long."""
    published = load_published()[config.task]
    game: dict[str, Any] = {"task": config.task, "published": published}
    for rules, changes in RULES.items():
        if rules != "atari100k" and only_atari100k:
            continue
        if rules == "source_18_actions" and game["source"]["agrees"]:
            continue
        game[rules] = summary(play(replace(config, changes), machine))
        played = [game[name] for name in RULES if name in game]
        deviation = max(sample["deviation"] for sample in played)
        for sample in played:
            z = z_score(sample["mean"] - published, deviation, sample["n"])
            sample |= {"z": round(z, 2), "agrees": abs(z) <= SIGNIFICANT}
        print(f"{config.task:22} {rules:18} {shown(game[rules]):>18}", file=sys.stderr, flush=True)
    return game


def summary(episodes: list[tuple[float, int]]) -> dict[str, Any]:
    """Statistics of scores and lengths."""
    scores = [score for score, _ in episodes]
    deviation = statistics.stdev(scores) if len(scores) > 1 else 0.0
    return {
        "n": len(scores),
        "mean": round(statistics.fmean(scores), 3),
        "error": round(deviation / math.sqrt(len(scores)), 3),
        "deviation": round(deviation, 3),
        "median": statistics.median(scores),
        "least": min(scores),
        "most": max(scores),
        "agent_steps": round(statistics.fmean(length for _, length in episodes), 1),
    }


def z_score(difference: float, deviation: float, n: int) -> float:
    """The difference of two means, of n and PUBLISHED_EPISODES episodes of one deviation, in errors."""
    error = deviation * math.sqrt(1 / n + 1 / PUBLISHED_EPISODES)
    if difference == 0:
        return 0.0
    return difference / error if error else math.copysign(math.inf, difference)


def markdown(found: dict[str, Any]) -> str:
    """The table of a record, and why there are several columns."""
    count, agree, played = len(found["games"]), found["agree"], found["games"][0].keys()
    verdict = f"{agree['atari100k']} of {count} games agree with the published score under Atari-100k's rules"
    if "source" in played:
        verdict += f", {agree['source']} of {count} under those of its source"
    lines = [
        "# Scores of the random agent",
        "",
        f"Command: `python -m benchmarks.random_scores {' '.join(found['argv'])}` ({found['time']}, EnvPool "
        f"{found['versions'].get('envpool', '?')}, record {found['id']}): mean ± standard error of "
        f"{found['episodes']} episodes, played by the trainer's own evaluation with `--agent=random`.",
        "",
        f"**{verdict}.** They agree where |z| <= {SIGNIFICANT:g}; z is the difference over its standard "
        f"error, with {PUBLISHED_EPISODES} episodes behind the published mean, and the largest deviation of "
        "a game under any rules.",
        "",
        WHY,
        "| game | published | Atari-100k | z | source's rules | z | with 18 actions | z |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for game in found["games"]:
        cells = [game["task"].removeprefix("atari_"), f"{game['published']:g}"]
        for rules in RULES:
            cells += [shown(game[rules]), judged(game[rules])] if rules in game else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def judged(sample: dict[str, Any]) -> str:
    z = "infinite" if sample["z"] is None else f"{sample['z']:.1f}"
    return z if sample["agrees"] else f"**{z}**"


def shown(sample: dict[str, Any]) -> str:
    digits = 1 if abs(sample["mean"]) < 1000 else 0
    return f"{sample['mean']:.{digits}f} ± {sample['error']:.{digits}f}"


if __name__ == "__main__":
    main()
