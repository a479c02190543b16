"""Statistics over runs and games: those of rliable, and what a reader of an interval relies on."""

import subprocess
import sys
import time

import numpy as np
import pytest

from jaxrl import aggregate

# Made by rliable 1.2.0 (with arch 7.2.0, scipy 1.17.1, pandas 2.3.3): aggregate_mean, _median, _iqm and
# _optimality_gap of rliable.metrics; np.random.seed(0) and then
# rliable.library.get_interval_estimates({name: scores}, all four in one array, reps=50_000).
SCORES = np.random.default_rng(0).lognormal(-0.5, 1.2, (5, 26))
OTHER = np.random.default_rng(1).lognormal(-0.2, 1.2, (3, 26))
RLIABLE = {
    "mean": (1.17040058, 0.96100744, 1.39285623),
    "median": (1.10769502, 0.76736549, 1.22550317),
    "iqm": (0.71940732, 0.57487594, 0.89829154),
    "gap": (0.37528022, 0.31874705, 0.43209004),
}
SMALL = np.array([[0.1, 2.0, -0.3, 0.8, 1.0], [0.4, 1.5, 0.0, 0.7, 1.2], [0.2, 3.5, 0.1, 0.9, 0.6]])
SMALL_OTHER = np.array([[0.2, 2.0, -0.1, 0.5, 1.3], [0.3, 1.0, 0.0, 0.6, 1.4]])
SMALL_RLIABLE = {
    "mean": (0.84666667, 0.66, 1.06666667),
    "median": (0.8, 0.6, 0.86666667),
    "iqm": (0.65555556, 0.54444444, 0.75555556),
    "gap": (0.43333333, 0.37333333, 0.5),
}
# scipy.stats.trim_mean(np.arange(n) ** 2.0, 0.25) for n = 1, 2, ...
TRIMMED = [0, 0.5, 5 / 3, 2.5, 14 / 3, 7.5, 11, 13.5, 18, 23 + 1 / 6, 29]


@pytest.mark.parametrize(("scores", "known"), [(SCORES, RLIABLE), (SMALL, SMALL_RLIABLE)])
def test_values_and_intervals_are_those_of_rliable(scores, known):
    """Values to eight digits. The ends of intervals are random: with 50,000 resamples they deviate over seeds
    by up to 0.0017 (SCORES) and 0.0033 (SMALL, where they jump between few sums), the difference of two of
    them by 1.4 times that, and four times that are 0.0096 and 0.019."""
    found = aggregate.estimates(scores, resamples=50_000)
    for name, (value, low, high) in known.items():
        assert found[name].value == pytest.approx(value, abs=5e-9)
        tolerance = 0.0096 if scores is SCORES else 0.019
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=tolerance), name


def test_what_is_trimmed_is_what_scipy_trims():
    assert [aggregate.iqm(np.arange(n)[:, None] ** 2.0) for n in range(1, 12)] == pytest.approx(TRIMMED)


def test_the_chance_to_beat_is_that_of_rliable():
    """rliable's probability_of_improvement, its interval with reps=2_000, whose ends deviate by 0.002."""
    assert aggregate.improvement(SCORES, OTHER) == pytest.approx(0.45128205, abs=5e-9)
    assert aggregate.improvement(SMALL, SMALL_OTHER) == pytest.approx(0.55)  # with ties
    found = aggregate.improvement_estimate(SCORES, OTHER, resamples=20_000)
    assert (found.low, found.high) == pytest.approx((0.37173077, 0.53076923), abs=0.009)
    assert aggregate.improvement(OTHER, SCORES) == pytest.approx(1 - 0.45128205, abs=5e-9)


def test_statistics_in_their_own_words():
    scores = aggregate.matrix({"a": [0.0, 1.0], "b": [3.0], "c": [0.2, 0.4, 0.9, 0.5]})
    assert aggregate.game_means(scores) == pytest.approx([0.5, 3.0, 0.5])
    assert aggregate.mean(scores) == pytest.approx(4 / 3)
    assert aggregate.median(scores) == 0.5
    assert aggregate.iqm(scores) == pytest.approx(
        (0.2 + 0.4 + 0.5 + 0.9 + 1.0) / 5
    )  # one of 7 off at each end
    assert aggregate.optimality_gap(scores) == pytest.approx((0.5 + 0.0 + 0.5) / 3)
    found = aggregate.estimates(scores)
    assert found["iqm_of_means"].value == pytest.approx(4 / 3)  # 3 games, none off
    assert found["gap_of_means"].value == pytest.approx(1 / 3)
    halves = aggregate.matrix({"a": [0.0, 3.0]})
    assert aggregate.optimality_gap(halves) == 0.5 and aggregate.estimates(halves)["gap_of_means"].value == 0


def test_missing_runs_are_as_if_they_had_never_been():
    whole = aggregate.matrix({"a": [0.3, 0.1, 2.0], "b": [1.0, 0.5, 0.6]})
    padded = np.full((5, 2), np.nan)
    padded[[0, 2, 4], 0], padded[[1, 2, 3], 1] = whole[:, 0], whole[:, 1]
    assert aggregate.estimates(padded).keys() == aggregate.STATISTICS.keys()
    for name, estimate in aggregate.estimates(padded, resamples=20_000).items():
        known = aggregate.estimates(whole, resamples=20_000)[name]
        assert estimate.value == pytest.approx(known.value)
        assert (estimate.low, estimate.high) == pytest.approx((known.low, known.high), abs=0.05)


def test_runs_are_drawn_within_their_game():
    scores = aggregate.matrix({"a": [1.0, 2.0, 3.0], "b": [10.0], "c": [20.0, 21.0]})
    drawn = aggregate.resampled(scores, 500, np.random.default_rng(0))
    assert drawn.shape == (500, 3, 3)
    assert (np.isfinite(drawn).sum(1) == [3, 1, 2]).all()
    for column, known in enumerate(([1, 2, 3], [10], [20, 21])):
        values, counts = np.unique(drawn[:, :, column][np.isfinite(drawn[:, :, column])], return_counts=True)
        assert values.tolist() == known and counts.min() > 0.85 * counts.mean()


def test_an_interval_is_the_same_for_the_same_seed_only():
    assert aggregate.estimates(SCORES, seed=3) == aggregate.estimates(SCORES, seed=3)
    assert aggregate.estimates(SCORES, seed=3) != aggregate.estimates(SCORES, seed=4)
    wide, narrow = (aggregate.estimates(SCORES, level=level)["iqm"] for level in (0.95, 0.5))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_one_run_a_game_has_no_interval():
    for estimate in aggregate.estimates(SCORES[:1]).values():
        assert estimate.low is None and estimate.high is None
    assert aggregate.improvement_estimate(SCORES[:1], OTHER[:1]).low is None
    assert aggregate.improvement_estimate(SCORES[:1], OTHER).low is not None
    assert aggregate.estimates(aggregate.matrix({"a": [1.0], "b": [0.0, 1.0]}))["mean"].low is not None


@pytest.mark.parametrize("scores", [{}, {"a": []}, {"a": [1.0], "b": [float("nan")]}, {"a": [float("inf")]}])
def test_scores_that_are_none_are_refused(scores):
    with pytest.raises(ValueError, match="no games|one or more finite"):
        aggregate.matrix(scores)


def test_two_thousand_resamples_take_no_time():
    took = []
    for _ in range(3):
        began = time.process_time()
        aggregate.estimates(SCORES, resamples=2_000)
        took.append(time.process_time() - began)
    assert min(took) < 0.1


def test_human_normalised():
    assert aggregate.normalised(14.6, -20.7, 14.6) == 1 and aggregate.normalised(-20.7, -20.7, 14.6) == 0


def test_a_band_says_what_it_is():
    one = aggregate.band([[1.0, 2.0]])
    assert one.kind == "one seed, no interval" and not one.has_interval
    assert one.low.tolist() == one.middle.tolist() == one.high.tolist() == [1, 2]
    three = aggregate.band([[1.0, 2.0], [4.0, 0.0], [1.0, 1.0]])
    assert three.kind == "lowest and highest of 3 seeds" and three.has_interval
    assert (three.low.tolist(), three.middle.tolist(), three.high.tolist()) == ([1, 0], [2, 1], [4, 2])
    values = np.random.default_rng(0).normal(size=(10, 4)) + [0, 10, 20, 30]
    ten = aggregate.band(values)
    assert ten.kind == "95 % bootstrap interval of the mean of 10 seeds"
    half = 1.96 * values.std(0) / np.sqrt(10)  # of a bootstrap of the mean, nearly normal with ten seeds
    assert ten.middle == pytest.approx(values.mean(0))
    assert ten.low == pytest.approx(values.mean(0) - half, abs=0.12)
    assert ten.high == pytest.approx(values.mean(0) + half, abs=0.12)
    assert (aggregate.band(values).low == ten.low).all()
    assert (aggregate.band(values, seed=1).low != ten.low).any()


def test_a_band_of_seeds_that_end_at_different_points():
    values = np.arange(24.0).reshape(6, 4)
    values[3:, 2:], values[1:, 3] = np.nan, np.nan
    band = aggregate.band(np.column_stack([values, np.full(6, np.nan)]))
    assert band.kind == (
        "95 % bootstrap interval of the mean of 6 seeds, then lowest and highest of 3 seeds, "
        "then one seed, no interval"
    )
    assert band.middle[:4].tolist() == [10, 11, 6, 3] and np.isnan(band.middle[4])
    assert (band.low[2], band.high[2]) == (2, 10) and band.low[3] == band.high[3] == 3
    assert 0 < band.low[0] < 10 < band.high[0] < 20
    holes = 100 + np.random.default_rng(0).normal(size=(8, 3))
    holes[:2, 1] = np.inf  # no point either
    band = aggregate.band(holes)
    assert band.middle[1] == pytest.approx(holes[2:, 1].mean())
    assert (98 < band.low).all() and (band.low < band.middle).all()
    assert (band.middle < band.high).all() and (band.high < 102).all()


def test_a_band_of_five_seeds_holds_what_its_docstring_says():
    band = aggregate.band(np.random.default_rng(3).normal(size=(5, 4_000)))
    assert ((band.low < 0) & (band.high > 0)).mean() == pytest.approx(0.83, abs=0.02)


@pytest.mark.parametrize("values", [[1.0, 2.0], np.zeros((0, 3)), np.zeros((2, 2, 2))])
def test_a_band_needs_seeds_and_points(values):
    with pytest.raises(ValueError, match="seeds, points"):
        aggregate.band(values)


def test_statistics_and_tables_cost_no_import_of_jax():
    script = "import sys, jaxrl.report.atari, jaxrl.report.foreign; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
