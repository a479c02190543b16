"""The table that Stable-Baselines3 users know: its names, its groups, its layout. Pure text.

Source of names and layout: Stable-Baselines3 documentation, "Logger".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

NAMES = {
    "step": "time/total_timesteps",
    "agent_steps": "time/agent_steps",
    "episodes": "time/episodes",
    "wall_s": "time/time_elapsed",
    "updates": "train/n_updates",
    "fps/env_steps": "time/fps",
    "replay/items": "time/buffer_size",
    "train/opt/lr": "train/learning_rate",
    "episode/score": "rollout/ep_rew_mean",
    "episode/length": "rollout/ep_len_mean",
    "episode/success": "rollout/success_rate",
    "eval_episode/avg_score": "eval/mean_reward",
    "eval_episode/length": "eval/mean_ep_length",
    "eval_episode/success_rate": "eval/success_rate",
}

# What is shown when nobody has chosen: about two dozen lines, matched like any other filter.
DEFAULT_FILTER = (
    r"^(rollout|eval|time|sinks)/"
    r"|^train/(n_updates|learning_rate|loss|\w+_loss|grad_norm|ent_\w+|rew|ret|val|skipped\w*)$"
)

WHOLE = {"time/fps", "time/time_elapsed"}  # shown as integers from 10 on, as there
MAX_CELL = 36  # characters; longer keys are shortened, as there


def sb3_name(name: str) -> str:
    """The name under which the table shows a metric.

    Where `NAMES` is silent: `fps/x` -> `time/x_per_s`, `episode/x` -> `rollout/x`,
    `eval_episode/x` -> `eval/x`, `group/loss/x` -> `group/x_loss`, `group/opt/x` -> `group/x`,
    `group/a/b` -> `group/a_b`. Anything else keeps its name.
    """
    if name in NAMES:
        return NAMES[name]
    group, *rest = name.split("/")
    if group == "fps" and rest:
        return f"time/{'_'.join(rest)}_per_s"
    group = {"episode": "rollout", "eval_episode": "eval"}.get(group, group)
    if len(rest) > 1 and rest[0] == "loss":
        return f"{group}/{'_'.join(rest[1:])}_loss"
    if len(rest) > 1 and rest[0] == "opt":
        rest = rest[1:]
    return f"{group}/{'_'.join(rest)}" if rest else f"other/{name}"


class Chooser:
    """Which metrics the human sees: a regular expression, searched in both names of a metric."""

    def __init__(self, pattern: str) -> None:
        """`pattern`: "" = the default choice; ".*" = everything. ValueError if it does not compile."""
        try:
            self._regex = re.compile(pattern or DEFAULT_FILTER)
        except re.error as error:
            raise ValueError(
                f"terminal.filter={pattern!r} must be a regular expression ({error}); "
                "'.*' shows every metric, '' the usual ones"
            ) from error
        self.chosen = pattern not in ("", ".*", DEFAULT_FILTER)  # True: somebody asked for these

    def __call__(self, name: str) -> bool:
        return bool(self._regex.search(name) or self._regex.search(sb3_name(name)))


class Table:
    """Lays out one table per flush. Column widths only grow, so that successive tables line up."""

    def __init__(self) -> None:
        self._key_width = 0
        self._value_width = 8

    def lines(self, values: Mapping[str, float], chooser: Chooser) -> list[tuple[str, str]]:
        """(group, line) pairs; the group is "" for rules and plain lines, else that of a title line."""
        cells: dict[str, dict[str, str]] = {}
        for name, value in values.items():
            if chooser(name):
                group, _, key = sb3_name(name).partition("/")
                row = cells.setdefault(group, {})
                key = key if key not in row else name  # two metrics, one SB3 name: keep both
                row[key] = format_value(value, f"{group}/{key}")
        if not cells:
            return []
        body = [
            line
            for group in sorted(cells)
            for line in [
                (group, f"{group}/", ""),
                *(("", _short(f"   {key}"), cells[group][key]) for key in sorted(cells[group])),
            ]
        ]
        self._key_width = max(self._key_width, *(len(key) for _, key, _ in body))
        self._value_width = max(self._value_width, *(len(value) for _, _, value in body))
        rule = ("", "-" * (self._key_width + self._value_width + 7))
        rows = [
            (group, f"| {key:<{self._key_width}} | {value:<{self._value_width}} |")
            for group, key, value in body
        ]
        return [rule, *rows, rule]


def format_value(value: float, name: str = "") -> str:
    """Three significant digits; whole numbers in full."""
    number = float(value)
    if not math.isfinite(number):
        return str(number)
    if (number.is_integer() and abs(number) < 1e12) or (name in WHOLE and abs(number) >= 10):
        return str(int(number))
    return f"{number:.3g}"


def _short(text: str) -> str:
    return text if len(text) <= MAX_CELL else text[: MAX_CELL - 3] + "..."


def clock(seconds: float) -> str:
    """12 -> "0:12", 3725 -> "1:02:05"."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
