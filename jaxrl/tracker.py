"""Episodes in progress, counted on the host where rewards of host environments arrive first."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from flax import struct

from jaxrl.types import Step

GOLDEN = 0.6180339887498949
TALLY = 5  # numbers that `tallied` keeps


class Tracker(struct.PyTreeNode, kw_only=True):
    """Per training environment; leaves [N] numpy. A value: `advanced` returns a new one."""

    score: np.ndarray  # f64, raw rewards of the game so far
    length: np.ndarray  # i64, agent_steps of the game so far
    game: np.ndarray  # i64, index of the game in progress
    episode: np.ndarray  # i64, index of the learner's episode in progress (a lost life may end one)
    written: np.ndarray  # i64, rows written to replay
    held_written: np.ndarray  # i64, rows written to the held-out ring

    @classmethod
    def zero(cls, n: int) -> "Tracker":
        def zeros():
            return np.zeros(n, np.int64)

        return cls(
            score=np.zeros(n),
            length=zeros(),
            game=zeros(),
            episode=zeros() - 1,  # the first row is_first makes it 0
            written=zeros(),
            held_written=zeros(),
        )

    def advanced(
        self, step: Step, reward: np.ndarray, is_over: np.ndarray, success: np.ndarray | None = None
    ) -> tuple["Tracker", list["Finished"]]:
        """Counts one row of every environment.

        Args:
          step: the row. reward: [N] raw rewards of the game. is_over: [N] bool, the game ended here.
          success: [N] bool, it has succeeded; None where the task does not define that.

        Returns:
          The new tracker, and the games that finished with this row.
        """
        score, length = self.score + reward, self.length + ~step.is_first
        finished = [
            Finished(
                env=int(n),
                score=float(score[n]),
                length=int(length[n]),
                episode=int(self.game[n]),
                success=None if success is None else bool(success[n]),
            )
            for n in np.flatnonzero(is_over)
        ]
        tracker = self.replace(
            score=np.where(is_over, 0.0, score),
            length=np.where(is_over, 0, length),
            game=self.game + is_over,
            episode=self.episode + step.is_first,
        )
        return tracker, finished

    def held(self, share: float) -> np.ndarray:
        """[N] bool: the learner's episode in progress is held out; an even share of each environment's."""
        phase = np.arange(len(self.episode)) * GOLDEN % 1 * (1 - share)
        before = np.floor(self.episode * share + phase)
        return np.floor((self.episode + 1) * share + phase) > before

    def wrote(self, held: np.ndarray) -> "Tracker":
        """Counts a row that went to replay, or to the held-out ring where `held`."""
        return self.replace(written=self.written + ~held, held_written=self.held_written + held)

    def restarted(self) -> "Tracker":
        """After a resume with an environment that could not be saved: its games begin anew."""
        return self.replace(score=np.zeros_like(self.score), length=np.zeros_like(self.length))


@dataclasses.dataclass(frozen=True)
class Finished:
    """One finished game."""

    env: int
    score: float
    length: int  # agent_steps
    episode: int  # index within its environment
    success: bool | None = None  # None: the task does not define it


def tallied(scores: np.ndarray, games: Iterable[Finished]) -> np.ndarray:
    """Sums over finished games, f64 [5], with more of them: count, scores, lengths, and how many of those
    for which success is defined there are and have succeeded."""
    for x in games:
        scores = scores + (1, x.score, x.length, x.success is not None, bool(x.success))
    return scores


def episode_means(scores: np.ndarray) -> dict[str, float]:
    """Scalars of a row, of the games in a tally; {} if there are none."""
    count, score, length, judged, succeeded = scores.tolist()
    means = {"episode/score": score / count, "episode/length": length / count} if count else {}
    return means | ({"episode/success": succeeded / judged} if judged else {})
