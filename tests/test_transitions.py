"""Replay of transitions against an explicit loop over the stream: stacks, n-step returns, ends, wrapping."""

import functools

import jax
import numpy as np
import pytest

from jaxrl.feeds.ring import Row
from jaxrl.feeds.transitions import TransitionReplay
from jaxrl.types import ArraySpec, Continuous, Horizon, Spaces

GAMMA = 0.9
SPACES = Spaces(
    obs={
        "image": ArraySpec((2, 2, 1), np.dtype(np.uint8)),  # number of the row in its stream
        "where": ArraySpec((2,), np.dtype(np.float32)),  # stream, number
    },
    action=Continuous(1),
)


@functools.cache
def feed(*, streams=1, rows=64, batch=64, stack=3, nstep=3):
    return TransitionReplay(
        spaces=SPACES,
        latents=(),
        streams=streams,
        rows=rows,
        batch=batch,
        horizon=Horizon(stack=stack, nstep=nstep, discount=GAMMA),
    )


def story(length, seed, mean=7, lives=False):
    """A stream of rows: episodes of random length that terminate, are truncated or are abandoned."""
    generator = np.random.default_rng(seed)
    names = ("is_first", "is_last", "is_terminal")
    rows = {name: np.zeros(length, bool) for name in names}
    t = 0
    while t < length:
        end = t + int(generator.integers(1, 2 * mean))
        rows["is_first"][t] = True
        kind = generator.integers(3)
        if end < length and kind < 2:
            rows["is_last"][end] = True
            rows["is_terminal"][end] = kind == 0
        if lives and end - t > 3:
            rows["is_terminal"][t + 2 : t + 3] = True
        t = end + 1
    rows["reward"] = np.where(rows["is_first"], 0, generator.normal(size=length)).astype(np.float32)
    return rows


def filled(replay, stories, until):
    insert, ring = jax.jit(replay.insert, donate_argnums=0), replay.init()
    for t in range(until):
        where = np.array([[n, t] for n in range(len(stories))], np.float32)
        row = Row(
            obs={"image": np.full((len(stories), 2, 2, 1), t % 256, np.uint8), "where": where},
            action=np.array([[t / 1000] for _ in stories], np.float32),
            latents=(),
            **{k: np.stack([s[k][t] for s in stories]) for k in stories[0]},
        )
        ring = insert(ring, row)
    return ring


def expected(story, t, head, stack, nstep):
    """What the transition that begins at row t must be, by an explicit loop; None if none begins there."""
    if story["is_last"][t] or t + nstep >= head or story["is_first"][t + 1]:
        return None
    total, end = 0.0, t
    for i in range(nstep):
        total += GAMMA**i * float(story["reward"][t + 1 + i])
        end = t + 1 + i
        if (
            story["is_last"][end]
            or story["is_terminal"][end]
            or (end + 1 < head and story["is_first"][end + 1])
        ):
            break
    discount = 0.0 if story["is_terminal"][end] else GAMMA ** (end - t)
    begin = max(i for i in range(t + 1) if story["is_first"][i] or i == 0)

    def frames(at):
        return [max(at - stack + 1 + j, begin) for j in range(stack)]

    return total, discount, frames(t), frames(end)


@pytest.mark.parametrize(
    ("stack", "nstep", "until"), [(3, 3, 60), (3, 3, 150), (4, 10, 200), (1, 1, 30), (2, 5, 90)]
)
@pytest.mark.parametrize("lives", [False, True])
def test_transitions_are_those_of_an_explicit_loop(stack, nstep, until, lives):
    replay = feed(streams=2, stack=stack, nstep=nstep)
    stories = [story(until, seed, lives=lives) for seed in (1, 2)]
    ring, seen = filled(replay, stories, until), set()
    sample = jax.jit(replay.sample)
    for number in range(20):
        _, batch, _ = sample(ring, jax.random.key(number), np.int32(7))
        assert batch.agent_steps == 7
        for i in range(replay.batch):
            stream, t = (int(x) for x in batch.obs["where"][i])
            want = expected(stories[stream], t, until, stack, nstep)
            assert want is not None, f"row {t} of stream {stream} begins no transition"
            total, discount, frames, following = want
            assert float(batch.reward[i]) == pytest.approx(total, abs=1e-5)
            assert float(batch.discount[i]) == pytest.approx(discount, abs=1e-6)
            assert batch.obs["image"][i, 0, 0].tolist() == [x % 256 for x in frames]
            assert batch.next_obs["image"][i, 1, 1].tolist() == [x % 256 for x in following]
            assert batch.next_obs["where"][i].tolist() == [stream, following[-1]]
            assert float(batch.action[i, 0]) == pytest.approx(t / 1000)
            seen.add((stream, t))
    oldest = max(0, until - replay.rows)
    low = oldest + (stack - 1 if oldest else 0)
    able = {
        (n, t) for n in range(2) for t in range(low, until) if expected(stories[n], t, until, stack, nstep)
    }
    assert seen == able  # every row that can begin a transition does, and no other


def test_every_start_is_as_likely_as_any_other():
    replay, until = feed(batch=4096), 60
    told = story(until, 3, mean=3)
    ring, count = filled(replay, [told], until), np.zeros(until)
    for number in range(10):
        _, start = replay.choose(ring, jax.random.key(number))
        count += np.bincount(np.asarray(start), minlength=until)
    able = np.array([expected(told, t, until, 3, 3) is not None for t in range(until)])
    share = count[able] / count.sum()
    # CANDIDATES rows are tried; with 15 of 57 rows unable, one draw in 40,000 finds none of them able.
    assert count[~able].sum() <= 40
    np.testing.assert_allclose(share, 1 / able.sum(), rtol=0.2)  # 40,960 draws over some 40 rows: 3 % each


def test_an_episode_of_two_rows_is_a_transition():
    told = {k: np.zeros(9, bool) for k in ("is_first", "is_last", "is_terminal")}
    told["is_first"][::2], told["is_last"][1::2], told["is_terminal"][1::2] = True, True, True
    told["reward"] = np.arange(9, dtype=np.float32)
    ring = filled(feed(), [told], 9)
    _, batch, _ = feed().sample(ring, jax.random.key(0), np.int32(0))
    assert set(np.asarray(batch.reward).tolist()) == {1.0, 3.0, 5.0}
    assert not np.asarray(batch.discount).any()
    assert (batch.obs["image"] == batch.obs["image"][..., -1:]).all()  # the first frame, repeated


def test_memory_is_one_frame_a_row():
    replay = feed(streams=2, rows=100)
    assert replay.row_bytes == 4 + 8 + 4 + 4 + 3
    assert replay.nbytes == sum(x.nbytes for x in jax.tree.leaves(replay.init().rows))
