"""Does it learn? Trains a preset on several seeds through the command line, keeps curves and a verdict.

    python -m benchmarks.learning --config=catch --seeds=0,1,2 --goal=0.9 --out=benchmarks/results/catch.json

One JSON record: per seed the evaluations (env_steps, wall seconds, mean score or another metric of
evaluations) and the last one against the goal. Beside OUT an .svg of the same name shows the curves. With
--keep the runs stay, for `python -m jaxrl.report`. Words after `--` go to the trainer.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import record

SIZE, MARGIN = (640, 360), 48  # pixels of the picture
SCORE = "eval_episode/avg_score"
TRAINING = {SCORE: "episode/score", "eval_episode/success_rate": "episode/success"}  # the same in training
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


def main() -> int:
    """Runs the seeds; 1 if one of them missed the goal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--goal", type=float, required=True, help="of the last evaluation")
    parser.add_argument("--metric", default=SCORE, choices=TRAINING, help="of an evaluation")
    parser.add_argument("--together", type=int, default=1, help="runs at the same time")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the runs; default: a temporary one")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("trainer", nargs="*", help="more settings, after --")
    args = parser.parse_args()
    head = record.start("learning")
    with tempfile.TemporaryDirectory() as folder:
        seeds = [int(seed) for seed in args.seeds.split(",")]
        runs = []
        for first in range(0, len(seeds), args.together):
            home = args.keep or pathlib.Path(folder)
            batch = [begin(args, seed, home) for seed in seeds[first : first + args.together]]
            runs += [finish(args.metric, *run) for run in batch]
    good = [bool(run["evaluations"]) and run["evaluations"][-1]["score"] >= args.goal for run in runs]
    found = {
        "config": args.config,
        "metric": args.metric,
        "goal": args.goal,
        "trainer": args.trainer,
        "together": args.together,
        "reached": good,
        "runs": runs,
    }
    record.finish(head | found, args.out)
    if args.out:
        title = f"{args.config}: {args.metric.partition('/')[2]}"
        args.out.with_suffix(".svg").write_text(picture(title, args.goal, runs), encoding="utf-8")
    return 0 if all(good) else 1


def begin(args: argparse.Namespace, seed: int, folder: pathlib.Path) -> tuple[int, pathlib.Path, Any]:
    """Starts one run."""
    logdir = folder / str(seed)
    command = [sys.executable, "-m", "jaxrl.train", f"--config={args.config}", f"--seed={seed}"]
    command += [f"--logdir={logdir}", "--terminal.style=off", *args.trainer]
    return seed, logdir, subprocess.Popen(command, stdout=subprocess.DEVNULL)


def finish(metric: str, seed: int, logdir: pathlib.Path, process: Any) -> dict[str, Any]:
    """Waits for a run and reads its curve."""
    code = process.wait()
    rows = [json.loads(line) for line in (logdir / "metrics.jsonl").read_text().splitlines()]
    scored = [row for row in rows if metric in row]
    curve = [
        {
            "step": row["step"],
            "updates": row["updates"],
            "wall_s": round(row["wall_s"], 1),
            "score": row[metric],
            "std": row["eval_episode/std_score"],
            "episodes": row["eval_episode/episodes"],
        }
        for row in scored
    ]
    name = TRAINING[metric]
    training = [[row["step"], round(row[name], 3)] for row in rows if name in row]
    return {"seed": seed, "exit": code, "evaluations": curve, "training": training}


def picture(title: str, goal: float, runs: list[dict[str, Any]]) -> str:
    """Curves as SVG: evaluations as points with lines, training episodes as thin lines."""
    points = [(x["step"], x["score"]) for run in runs for x in run["evaluations"]]
    points += [tuple(x) for run in runs for x in run["training"]] + [(0, goal)]
    last, low, high = max(x for x, _ in points) or 1, min(y for _, y in points), max(y for _, y in points)
    span = (high - low) or 1.0

    def at(step: float, score: float) -> tuple[float, float]:
        x = MARGIN + step / last * (SIZE[0] - 2 * MARGIN)
        return round(x, 1), round(SIZE[1] - MARGIN - (score - low) / span * (SIZE[1] - 2 * MARGIN), 1)

    def line(track: list[tuple[float, float]], style: str) -> str:
        return f'<polyline fill="none" {style} points="{" ".join(f"{x},{y}" for x, y in track)}"/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIZE[0]}" height="{SIZE[1]}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
    ]
    grey = 'stroke="#888" stroke-dasharray="4 3"'
    parts += [line([at(0, goal), at(last, goal)], grey), line([at(0, low), at(last, low)], 'stroke="black"')]
    parts.append(line([at(0, low), at(0, high)], 'stroke="black"'))
    for number, run in enumerate(runs):
        colour = COLOURS[number % len(COLOURS)]
        thin = f'stroke="{colour}" stroke-opacity="0.35"'
        parts.append(line([at(*x) for x in run["training"]], thin))
        track = [at(x["step"], x["score"]) for x in run["evaluations"]]
        parts.append(line(track, f'stroke="{colour}" stroke-width="2"'))
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in track]
        parts.append(
            f'<text x="{SIZE[0] - MARGIN + 6}" y="{60 + 16 * number}" fill="{colour}">{run["seed"]}</text>'
        )
    parts += [
        f'<text x="{MARGIN}" y="24">{title} (thick: evaluation, thin: training)</text>',
        f'<text x="{SIZE[0] / 2 - 30}" y="{SIZE[1] - 10}">env_steps</text>',
        f'<text x="{SIZE[0] - MARGIN - 36}" y="{SIZE[1] - 30}">{last:,}</text>',
        f'<text x="6" y="{at(0, high)[1] + 4}">{high:.3g}</text>',
        f'<text x="6" y="{at(0, low)[1] + 4}">{low:.3g}</text>',
        f'<text x="6" y="{at(0, goal)[1] + 4}" fill="#888">{goal:g}</text>',
        f'<text x="{SIZE[0] - MARGIN}" y="44">seed</text></svg>',
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
