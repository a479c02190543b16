"""Episodes in progress: scores, lengths, and which episodes are held out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import evaluation, glossary
from jaxrl.tracker import TALLY, Finished, Tracker, episode_means, tallied
from jaxrl.types import Step


def row(is_first, is_last=None, is_terminal=None):
    is_first = np.asarray(is_first, bool)
    none = np.zeros_like(is_first)
    return Step(
        obs={},
        reward=np.full(is_first.shape, np.nan, np.float32),  # the learner's reward; scores count the game's
        is_first=is_first,
        is_last=none if is_last is None else np.asarray(is_last, bool),
        is_terminal=none if is_terminal is None else np.asarray(is_terminal, bool),
    )


def advance(tracker, is_first, reward, is_over=None):
    """Advances by one row; the tracker that went in must not change."""
    before = {k: v.copy() for k, v in vars(tracker).items()}
    is_over = np.zeros(len(is_first), bool) if is_over is None else np.asarray(is_over, bool)
    after, finished = tracker.advanced(row(is_first), np.float32(reward), is_over)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(tracker, name), value)
        assert getattr(after, name).dtype == value.dtype
    return after, finished


def test_scores_and_lengths():
    tracker, finished = advance(Tracker.zero(2), [True, True], [0, 0])
    assert finished == []
    tracker, finished = advance(tracker, [False, False], [1, 10])
    tracker, finished = advance(tracker, [False, False], [2.5, 20], [True, False])
    assert finished == [Finished(env=0, score=3.5, length=2, episode=0)]
    tracker, finished = advance(tracker, [True, False], [0, 30], [False, True])
    assert finished == [Finished(env=1, score=60.0, length=3, episode=0)]
    tracker, finished = advance(tracker, [False, True], [7, 0], [True, False])
    assert finished == [Finished(env=0, score=7.0, length=1, episode=1)]
    np.testing.assert_array_equal(tracker.game, [2, 1])
    np.testing.assert_array_equal(tracker.episode, [1, 1])


def test_two_games_may_end_together_and_large_scores_stay_exact():
    tracker, _ = advance(Tracker.zero(3), [True] * 3, [0, 0, 0])
    for _ in range(1000):
        tracker, finished = advance(tracker, [False] * 3, [100_000.0, 0.5, -1])
    assert not finished
    _, finished = advance(tracker, [False] * 3, [1, 0, -1], [True, False, True])
    assert finished == [Finished(0, 100_000_001.0, 1001, 0), Finished(2, -1001.0, 1001, 0)]


def test_a_lost_life_ends_the_learners_episode_but_not_the_game():
    """With env.lives=terminal, an `is_first` row comes in the middle of a game; it is no decision."""
    tracker, _ = advance(Tracker.zero(1), [True], [0])
    tracker, _ = advance(tracker, [False], [1])
    tracker, finished = advance(tracker, [False], [2])  # the learner's episode ends here, the game goes on
    assert finished == []
    tracker, _ = advance(tracker, [True], [4])  # what the game gave during the row without a decision
    np.testing.assert_array_equal(tracker.episode, [1])
    np.testing.assert_array_equal(tracker.game, [0])
    tracker, finished = advance(tracker, [False], [8], [True])
    assert finished == [Finished(env=0, score=15.0, length=3, episode=0)]


def test_rows_written():
    tracker = Tracker.zero(3).wrote(np.array([True, False, False])).wrote(np.array([True, True, False]))
    np.testing.assert_array_equal(tracker.written, [0, 1, 2])
    np.testing.assert_array_equal(tracker.held_written, [2, 1, 0])


def test_a_resume_begins_new_games():
    tracker, _ = advance(Tracker.zero(2), [True, True], [0, 0])
    tracker, _ = advance(tracker, [False, False], [5, 6])
    tracker = tracker.wrote(np.zeros(2, bool))
    again, _ = advance(tracker.restarted(), [True, True], [0, 0])
    _, finished = advance(again, [False, False], [1, 1], [True, True])
    assert [(x.score, x.length) for x in finished] == [(1.0, 1), (1.0, 1)]
    np.testing.assert_array_equal(again.written, [1, 1])
    np.testing.assert_array_equal(again.episode, [1, 1])  # its own number: it is drawn anew who is held out


def held_episodes(n, share, count):
    """[count, n] bool, who is held out, episode by episode."""
    zero = Tracker.zero(n)
    return np.stack([zero.replace(episode=np.full(n, i)).held(share) for i in range(count)])


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 8), share=st.floats(0, 0.5), count=st.integers(1, 300))
def test_the_held_out_share_is_exact_at_any_time(n, share, count):
    held = held_episodes(n, share, count)
    so_far = held.cumsum(0)
    expected = np.arange(1, count + 1)[:, None] * share
    assert (np.abs(so_far - expected) <= 1 + 1e-6).all()
    assert not held[0].any()  # so that training can begin


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_held_out_episodes_are_spread_evenly(share):
    held = held_episodes(8, share, 1000)
    np.testing.assert_allclose(held.mean(0), share, atol=1e-3)
    for column in held.T:
        gaps = np.diff(np.flatnonzero(column))
        assert set(gaps) <= {int(1 / share), int(1 / share) + 1}
    # environments take turns, as far as none may begin with a held-out episode
    assert held.any(1).mean() > min(2 * share, 0.49)


def test_nobody_is_held_out_by_default():
    assert not held_episodes(4, 0.0, 50).any()


def test_who_is_held_out_depends_on_the_learners_episode():
    tracker = Tracker.zero(1)
    held = []
    for _ in range(6):  # episodes of two rows
        tracker, _ = advance(tracker, [True], [0])
        held.append(tracker.held(0.5)[0])
        tracker, _ = advance(tracker, [False], [0], [True])
        assert tracker.held(0.5)[0] == held[-1]  # the whole episode, its last row too
    assert sum(held) == 3


def test_success_is_that_of_the_finished_game():
    tracker, _ = Tracker.zero(3).advanced(row([True] * 3), np.zeros(3), np.zeros(3, bool), np.zeros(3, bool))
    over, success = np.array([True, True, False]), np.array([True, False, True])
    _, finished = tracker.advanced(row([False] * 3), np.ones(3), over, success)
    assert [(x.env, x.success) for x in finished] == [(0, True), (1, False)]
    _, finished = tracker.advanced(row([False] * 3), np.ones(3), over)
    assert [x.success for x in finished] == [None, None]


def test_means_of_finished_games():
    """The success rate is a share of those games for which success is defined, and absent without any."""
    none = np.zeros(TALLY)
    assert episode_means(none) == {}
    two = tallied(none, [Finished(0, 3.0, 10, 0), Finished(0, 5.0, 30, 1)])
    assert episode_means(two) == {"episode/score": 4.0, "episode/length": 20.0}
    games = [Finished(0, 2.0, 5, n, success) for n, success in enumerate((True, False, True, True))]
    means = episode_means(tallied(tallied(none, games[:1]), games[1:]))
    assert means == {"episode/score": 2.0, "episode/length": 5.0, "episode/success": 0.75}
    assert evaluation.summary(games)["eval_episode/success_rate"] == 0.75
    assert "eval_episode/success_rate" not in evaluation.summary([Finished(0, 3.0, 10, 0)])
    names = {*means, *evaluation.summary(games)}
    assert not [name for name in names if glossary.find(name) is None]
