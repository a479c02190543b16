"""Entry: python -m jaxrl.evaluate RUN_OR_CHECKPOINT [--episodes=100] [--video] ..."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import NoReturn

from jaxrl import exits, runtime
from jaxrl.config import Config, ConfigError, replace
from jaxrl.schema import nearest

MOST = 1_000_000  # episodes
SEEDS = 1_000_000_000


class Parser(argparse.ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].lower()}{message[1:]}; --help lists what there is")


def parser() -> Parser:
    made = Parser(
        prog="python -m jaxrl.evaluate",
        description="Plays episodes with the policy of a checkpoint, on the run's own task and settings; "
        "prints a table and writes evaluations/<step>-<time>.json, and with --video a video beside it.",
        allow_abbrev=False,
    )
    made.add_argument(
        "run", metavar="RUN_OR_CHECKPOINT", help="run directory, or a folder in its checkpoints/"
    )
    made.add_argument("--episodes", default="100", help="how many are played [100]")
    made.add_argument(
        "--which", default="", help="best, latest or a step [best if there is one, else latest]"
    )
    made.add_argument("--video", action="store_true", help="film the first episode")
    made.add_argument("--video_episodes", default="1", help="film so many episodes of one environment [1]")
    made.add_argument(
        "--cameras",
        default="",
        help="of physics tasks, with commas; top, front, side and iso are always there",
    )
    made.add_argument("--device", default="auto", choices=("auto", "cpu", "gpu", "tpu"), help="[auto]")
    made.add_argument("--seed", default="0", help="of the episodes; the same for all checkpoints [0]")
    made.add_argument("--out", default="", help="folder of what is written [evaluations/ of the run]")
    return made


def whole(name: str, text: str, low: int, high: int) -> int:
    """A whole number of the command line."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise ConfigError(f"--{name}={text[:80]}: must be a whole number from {low} to {high:_}")
    return value


def main(argv: Sequence[str]) -> int:
    """Runs a command line; returns the exit code."""
    try:
        given, unknown = parser().parse_known_args(argv)
        for word in unknown:
            options = [x.dest for x in parser()._actions if x.option_strings]
            near = nearest(word.lstrip("-").partition("=")[0], options, "--")
            raise ConfigError(f"{word[:80]}: unknown option; {near}")
        episodes = whole("episodes", given.episodes, 1, MOST)
        filmed = whole("video_episodes", given.video_episodes, 1, episodes)
        seed = whole("seed", given.seed, 0, SEEDS)
        runtime.prepare(replace(Config(), {"device": given.device}))
        from jaxrl import trial  # imports jax, which takes seconds

        cameras = tuple(x.strip() for x in given.cameras.split(",") if x.strip())
        wish = trial.Wish(
            path=given.run,
            episodes=episodes,
            which=given.which,
            cameras=cameras,
            video=filmed if given.video or cameras else 0,
            device=given.device,
            seed=seed,
            out=given.out,
        )
        result = trial.hold(wish, lambda line: print(f"jaxrl: {line}", flush=True))
        with contextlib.suppress(BrokenPipeError):
            print("\n".join([*result.lines, f"jaxrl: {result.file}"]), flush=True)
        return exits.DONE
    except SystemExit:  # of --help
        return exits.DONE
    except (ConfigError, exits.RunError) as error:
        print(f"jaxrl: {error}", file=sys.stderr)
        return getattr(error, "code", exits.BAD_CONFIG)
    except KeyboardInterrupt:
        return exits.INTERRUPTED


if __name__ == "__main__":
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    runtime.leave_at_once(code)
