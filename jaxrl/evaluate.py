"""Entry: python -m jaxrl.evaluate RUN_OR_CHECKPOINT [--episodes=100] [--video] ..."""

import sys
from collections.abc import Sequence

from jaxrl import commands, exits, runtime
from jaxrl.config import Config, replace

MOST = 1_000_000  # episodes
SEEDS = 1_000_000_000


def parser() -> commands.Parser:
    made = commands.Parser(
        "jaxrl.evaluate",
        "Plays episodes with the policy of a checkpoint, on the run's own task and settings; "
        "prints a table and writes evaluations/<step>-<time>.json, and with --video a video beside it.",
    )
    made.add_argument(
        "run", metavar="RUN_OR_CHECKPOINT", help="run directory, or a folder in its checkpoints/"
    )
    made.add_argument("--episodes", default="100", help="how many are played [100]")
    made.add_argument(
        "--which", default="", help="best, latest or a step [best if there is one, else latest]"
    )
    made.add_argument("--video", action="store_true", help="film the first episode")
    made.add_argument("--video_episodes", default="", help="film so many episodes of one environment [1]")
    made.add_argument(
        "--cameras",
        default="",
        help="of physics tasks, with commas; top, front, side and iso are always there",
    )
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"), help="[auto]")
    made.add_argument("--seed", default="0", help="of the episodes; the same for all checkpoints [0]")
    made.add_argument("--out", default="", help="folder of what is written [evaluations/ of the run]")
    return made


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    return commands.ended(lambda: run(argv))


def run(argv: Sequence[str]) -> int:
    given = parser().parsed(argv)
    episodes = commands.whole("episodes", given.episodes, 1, MOST)
    filmed = commands.whole("video_episodes", given.video_episodes or "1", 1, episodes)
    seed = commands.whole("seed", given.seed, 0, SEEDS)
    runtime.prepare(replace(Config(), {"device": given.device}))
    from jaxrl import trial  # imports jax, which takes seconds

    cameras = tuple(x.strip() for x in given.cameras.split(",") if x.strip())
    wish = trial.Wish(
        path=given.run,
        episodes=episodes,
        which=given.which,
        cameras=cameras,
        video=filmed if given.video or given.video_episodes or cameras else 0,
        device=given.device,
        seed=seed,
        out=given.out,
    )
    result = trial.hold(wish, lambda line: commands.say(f"jaxrl: {line}"))
    commands.say("\n".join([*result.lines, f"jaxrl: {result.file}"]))
    return exits.DONE


if __name__ == "__main__":
    runtime.leave_at_once(commands.flushed(main(sys.argv[1:])))
