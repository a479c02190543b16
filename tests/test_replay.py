"""The ring: every row says which stream it is of and when it was written, so that a sample can be checked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.config import ConfigError
from jaxrl.envs import Clock, Hosted
from jaxrl.envs.toys import clock_reward
from jaxrl.feeds.replay import Replay
from jaxrl.feeds.ring import Ring, Row, check_budget, row_of, trainable_rows
from jaxrl.types import ArraySpec, Discrete, Spaces, Step

SPACES = Spaces(
    obs={
        "image": ArraySpec((4, 4, 1), np.dtype(np.uint8)),
        "origin": ArraySpec((2,), np.dtype(np.float32)),  # stream, number of the row in it
    },
    action=Discrete(100),
)
LATENTS = {"deter": np.zeros(3, np.uint16), "index": np.zeros((2,), np.uint8)}


@functools.cache
def replay_of(*, streams=1, rows=16, batch=8, length=4, context=1, online=False):
    return Replay(
        spaces=SPACES,
        latents=LATENTS,
        streams=streams,
        rows=rows,
        batch=batch,
        length=length,
        context=context,
        online=online,
    )


# Fast to compile; the graph is optimised as always, only the code for the processor is not.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
COMPILED = {}  # by replay and function; `replay_of` keeps every replay alive


def compiled(replay, name):
    if (id(replay), name) not in COMPILED:
        COMPILED[id(replay), name] = quick(getattr(replay, name), donate_argnums=0)
    return COMPILED[id(replay), name]


def row_at(number, is_first=None, is_last=None):
    """Row `number` [N] of each stream."""
    number = np.asarray(number)
    n, none = len(number), np.zeros(len(number), bool)
    step = Step(
        obs={
            "image": np.broadcast_to((number % 256)[:, None, None, None], (n, 4, 4, 1)).astype(np.uint8),
            "origin": np.stack([np.arange(n), number], -1).astype(np.float32),
        },
        reward=np.float32(number) / 2,
        is_first=none if is_first is None else np.asarray(is_first),
        is_last=none if is_last is None else np.asarray(is_last),
        is_terminal=number % 7 == 0,
    )
    latents = {
        "deter": np.broadcast_to(number[:, None], (n, 3)).astype(np.uint16),
        "index": np.broadcast_to((number % 5)[:, None], (n, 2)).astype(np.uint8),
    }
    return row_of(step, np.int32(number % 100), latents)


def filled(replay, count, ring=None):
    """The ring after `count` more rows of every stream."""
    ring = replay.init() if ring is None else ring
    for _ in range(count):
        ring = compiled(replay, "insert")(ring, row_at(np.asarray(ring.cursor)))
    return ring


def check_batch(replay, cursor, batch, window):
    """Sequences of neighbours that are still in the ring, of one stream each, and unharmed."""
    stream, number = np.moveaxis(np.asarray(batch.obs["origin"]).astype(int), -1, 0)  # [L, B]
    assert stream.shape == (replay.length + replay.context, replay.batch)
    np.testing.assert_array_equal(stream, np.broadcast_to(window.stream, stream.shape))
    assert (np.diff(number, axis=0) == 1).all()
    assert (number[0] >= cursor[stream[0]] - replay.rows).all() and (number[0] >= 0).all()
    assert (number[-1] < cursor[stream[0]]).all()
    np.testing.assert_array_equal(window.slot, number % replay.rows)
    np.testing.assert_array_equal(batch.reward, np.float32(number) / 2)
    np.testing.assert_array_equal(batch.action, number % 100)
    np.testing.assert_array_equal(batch.is_terminal, number % 7 == 0)
    np.testing.assert_array_equal(batch.obs["image"][..., 0, 0, 0], number % 256)
    np.testing.assert_array_equal(batch.latents["deter"][..., 0], number)
    np.testing.assert_array_equal(batch.latents["index"][..., 1], number % 5)
    return stream[0], number[0]


def test_a_clock_through_the_ring():
    env = Hosted(Clock(size=4), num_envs=3, seed=0)
    replay = Replay(
        spaces=env.spaces, latents=(), streams=3, rows=40, batch=64, length=7, context=1, online=False
    )
    insert, sample = quick(replay.insert, donate_argnums=0), quick(replay.sample, donate_argnums=0)
    ring, step = replay.init(), env.reset()
    for i in range(100):
        ring = insert(ring, row_of(step, np.zeros(3, np.int32), ()))
        env.send(np.zeros(3, np.int32))
        step = env.recv()
        if i in (7, 20, 39, 40, 77, 99):
            ring, batch, _ = sample(ring, jax.random.key(i))
            count, is_first = np.asarray(batch.obs["count"])[..., 0], np.asarray(batch.is_first)
            assert ((np.diff(count, axis=0) == 1) | is_first[1:]).all()
            assert (is_first == (count == 0)).all()
            np.testing.assert_array_equal(batch.is_last[:-1], is_first[1:] | np.asarray(batch.is_last[:-1]))
            np.testing.assert_array_equal(batch.reward, np.where(is_first, 0, clock_reward(count)))


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize(("streams", "context"), [(1, 1), (3, 1), (3, 0)])
def test_sequences_never_cross_the_write_head(streams, context, online):
    replay = replay_of(streams=streams, context=context, online=online)
    ring, seen = filled(replay, replay.window - 1), set()
    for i in range(45):  # nearly three times around
        ring = filled(replay, 1, ring)
        ring, batch, window = compiled(replay, "sample")(ring, jax.random.key(i))
        cursor = np.asarray(ring.cursor)
        seen |= {cursor[0] - start for start in check_batch(replay, cursor, batch, window)[1]}
    # every age was drawn, from the newest possible start to the oldest row
    assert seen == set(range(replay.window, replay.rows + 1))


@pytest.mark.parametrize("online", [False, True])
def test_streams_that_advance_unequally(online):
    replay = replay_of(streams=4, online=online)
    insert, draw = compiled(replay, "insert"), np.random.default_rng(0)
    ring, cursor, streams = replay.init(), np.zeros(4, int), set()
    for i in range(120):
        where = draw.uniform(size=4) < [0.9, 0.5, 0.1, 0.0]
        ring = insert(ring, row_at(cursor), where)
        cursor = cursor + where
        np.testing.assert_array_equal(ring.cursor, cursor)
        if trainable_rows(cursor, replay.rows, replay.window):
            ring, batch, window = compiled(replay, "sample")(ring, jax.random.key(i))
            streams |= set(check_batch(replay, cursor, batch, window)[0])
    assert streams == {0, 1, 2}  # the last never held a row


@pytest.mark.parametrize("cursor", [(5, 16, 47, 4), (9, 9, 9, 9), (0, 0, 0, 6)])
def test_draws_are_uniform_over_all_start_rows(cursor):
    replay = replay_of(streams=4)
    ring = jax.eval_shape(replay.init)
    ring = Ring(rows=ring.rows, cursor=jnp.array(cursor, jnp.int32), taken=jnp.zeros(4, jnp.int32))
    keys = jax.random.split(jax.random.key(0), 2_000)
    choose = quick(jax.vmap(lambda key: replay.choose(ring, key)[1:]))
    stream, start = (np.asarray(x).ravel() for x in choose(keys))
    possible = [
        (n, s)
        for n, end in enumerate(cursor)
        for s in range(max(0, end - replay.rows), end - replay.window + 1)
    ]
    counts = np.array([((stream == n) & (start == s)).sum() for n, s in possible])
    assert counts.sum() == len(start)  # nothing else was drawn
    expected = len(start) / len(possible)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = len(possible) - 1
    assert chi_square < freedom + 5 * np.sqrt(2 * freedom) + 1e-9


def queued_sequences(replay, ring, key):
    """(ring, [(stream, start)] that the online queue handed out, batch, window)."""
    before = np.asarray(ring.taken).copy()
    cursor = np.asarray(ring.cursor)
    ring, batch, window = compiled(replay, "sample")(ring, key)
    stream, start = check_batch(replay, cursor, batch, window)
    oldest = np.maximum(cursor - replay.rows, 0)
    before = np.maximum(before, -(-oldest // replay.length))  # what was overwritten is skipped
    count = int((np.asarray(ring.taken) - before).sum())
    return ring, list(zip(stream[:count].tolist(), start[:count].tolist(), strict=True))


@pytest.mark.parametrize(("streams", "context", "batch"), [(1, 1, 4), (3, 1, 4), (3, 0, 2)])
def test_the_online_queue_shows_every_row_soon_and_once(streams, context, batch):
    """A loss covers every row but those in front of the first sequence, exactly once from the queue."""
    replay = replay_of(streams=streams, context=context, batch=batch, online=True)
    ring, covered = replay.init(), {}
    for i in range(60):
        ring = filled(replay, 1, ring)
        cursor = int(ring.cursor[0])
        if cursor < replay.window:
            continue
        ring, queued = queued_sequences(replay, ring, jax.random.key(i))
        for stream, start in queued:
            for number in range(start + context, start + context + replay.length):
                assert (stream, number) not in covered, "twice from the queue"
                covered[stream, number] = cursor
        # a sequence may wait while `batch` others are served
        due = cursor - replay.length - (streams - 1) // batch - 1
        assert all((n, r) in covered for n in range(streams) for r in range(context, due + 1)), cursor
    for (_, number), cursor in covered.items():
        assert cursor - number <= replay.length + 1 + (streams - 1) // batch


def test_the_online_queue_waits_for_its_turn_and_is_emptied_in_order():
    replay = replay_of(streams=2, rows=64, batch=3, online=True)
    ring = filled(replay, 4 * 4 + 1)  # four sequences of each stream are due
    found = []
    for i in range(4):
        ring, queued = queued_sequences(replay, ring, jax.random.key(i))
        found += queued
        assert len(queued) == (3, 3, 2, 0)[i]
    assert sorted(found) == [(n, 4 * j) for n in range(2) for j in range(4)]
    for n in range(2):
        assert [start for stream, start in found if stream == n] == [0, 4, 8, 12]
    ring = filled(replay, 3, ring)
    assert queued_sequences(replay, ring, jax.random.key(5))[1] == []


def test_the_online_queue_serves_all_streams_where_updates_are_rare():
    """Half of what is collected is trained on: each stream gets its share, not the first ones everything."""
    replay = replay_of(streams=4, batch=2, online=True)
    ring, served = replay.init(), np.zeros(4, int)
    for i in range(150):
        ring = filled(replay, 4, ring)
        if i:
            ring, queued = queued_sequences(replay, ring, jax.random.key(i))
            assert len(queued) == 2
            served += np.bincount([stream for stream, _ in queued], minlength=4)
    assert served.min() > 0.6 * served.mean()


def test_the_online_queue_skips_what_was_overwritten():
    replay = replay_of(online=True)  # 16 rows
    ring = filled(replay, 102)  # rows 86 to 101 are left
    ring, queued = queued_sequences(replay, ring, jax.random.key(0))
    assert queued == [(0, 88), (0, 92), (0, 96)]
    assert queued_sequences(replay, ring, jax.random.key(1))[1] == []


def test_an_abandoned_episode_ends_where_the_next_begins():
    replay = replay_of(rows=8, batch=32, length=5, context=0)
    ring = replay.init()
    for number in range(8):
        row = row_at([number], is_first=[number in (0, 3, 6)], is_last=[number == 5])
        ring = compiled(replay, "insert")(ring, row)
    ring, batch, window = compiled(replay, "sample")(ring, jax.random.key(0))
    number = np.asarray(batch.obs["origin"])[..., 1]
    inside = np.arange(5)[:, None] < 4  # of a sequence's last row the next is not known
    np.testing.assert_array_equal(batch.is_last, np.isin(number, [5]) | (inside & np.isin(number, [2, 5])))
    np.testing.assert_array_equal(batch.is_terminal, number % 7 == 0)  # no episode is made to terminate
    np.testing.assert_array_equal(ring.rows.is_last[:, 0], np.arange(8) == 5)  # the ring keeps what was said


def test_refreshed_latents_reach_exactly_the_rows_after_the_context():
    replay = replay_of(streams=3, batch=2)
    ring = filled(replay, 27)  # wrapped
    before = jax.tree.map(np.array, ring.rows)
    ring, batch, window = compiled(replay, "sample")(ring, jax.random.key(3))
    fresh = {
        "deter": jnp.arange(4 * 2 * 3, dtype=jnp.uint16).reshape(4, 2, 3) + 1000,
        "index": jnp.full((4, 2, 2), 77, jnp.uint8),
    }
    ring = compiled(replay, "write_latents")(ring, window, fresh)
    slot, stream = np.asarray(window.slot), np.asarray(window.stream)
    assert len({(s, n) for row in slot for s, n in zip(row, stream, strict=True)}) == slot.size  # disjoint
    want = jax.tree.map(np.copy, before.latents)
    for t in range(4):
        for b in range(2):
            want["deter"][slot[t + 1, b], stream[b]] = fresh["deter"][t, b]
            want["index"][slot[t + 1, b], stream[b]] = 77
    jax.tree.map(np.testing.assert_array_equal, ring.rows.latents, want)
    jax.tree.map(np.testing.assert_array_equal, ring.rows.replace(latents=()), before.replace(latents=()))
    _, again, _ = compiled(replay, "sample")(ring, jax.random.key(3))
    np.testing.assert_array_equal(again.latents["deter"][1:], fresh["deter"])
    np.testing.assert_array_equal(again.latents["deter"][0], batch.latents["deter"][0])


@pytest.mark.filterwarnings("error:Some donated buffers were not usable")
def test_donated_rings_stay_where_they_are():
    replay = replay_of(streams=3, batch=2, online=True)
    ring = filled(replay, 7)

    def places(ring):
        return [x.unsafe_buffer_pointer() for x in jax.tree.leaves(ring.rows)]

    start = places(ring)
    ring = compiled(replay, "insert")(ring, row_at(np.asarray(ring.cursor)))
    assert places(ring) == start
    ring = compiled(replay, "insert")(ring, row_at(np.asarray(ring.cursor)), np.array([True, False, True]))
    assert places(ring) == start
    old = ring
    ring, batch, window = compiled(replay, "sample")(ring, jax.random.key(0))
    assert places(ring) == start and jax.tree.leaves(old)[0].is_deleted()
    latents = jax.tree.map(lambda x: x[1:], batch.latents)
    ring = compiled(replay, "write_latents")(ring, window, latents)
    assert places(ring) == start


def test_bytes_are_those_of_the_arrays():
    replay = replay_of(streams=3, rows=16)
    assert replay.row_bytes == 16 + 8 + 4 + 4 + 3 + 6 + 2  # image, origin, action, reward, flags, latents
    ring = replay.init()
    assert replay.nbytes == sum(x.nbytes for x in jax.tree.leaves(ring.rows))
    assert all(x.shape[:2] == (16, 3) for x in jax.tree.leaves(ring.rows))
    assert isinstance(ring.rows, Row) and ring.rows.obs["image"].dtype == jnp.uint8


@pytest.mark.parametrize("budget", [43 * 3 * 50, 43 * 3 * 50 + 128, 43 * 3 * 51 - 1])
def test_the_budget_error_names_the_largest_capacity_that_fits(budget):
    replay = replay_of(streams=3, rows=1_000)
    check_budget(replay, 0, replay.nbytes, "device")
    with pytest.raises(ConfigError) as error:
        check_budget(replay, 0, budget, "device")
    text = str(error.value)
    assert text.startswith("replay.capacity=3000: needs ") and "budget of the device" in text
    assert "--replay.placement=host" in text and "--replay.budget_gb" in text
    capacity = int(text.partition("--replay.capacity=")[2].split()[0])
    assert capacity == 150
    check_budget(replay_of(streams=3, rows=capacity // 3), 0, budget, "device")
    with pytest.raises(ConfigError):
        check_budget(replay_of(streams=3, rows=capacity // 3 + 1), 0, budget, "device")


def test_the_budget_error_offers_only_what_helps():
    replay = replay_of(streams=3, rows=1_000)
    with pytest.raises(ConfigError) as error:
        check_budget(replay, 0, 3 * 43 * 4, "host")  # not even one sequence fits
    assert "--replay.capacity=" not in str(error.value) and "placement" not in str(error.value)
    with pytest.raises(ConfigError):
        check_budget(replay, 1, replay.nbytes, "device")  # beside it lies the ring of held-out episodes


def test_a_ring_grows_behind_its_rows():
    small, large = replay_of(streams=2, rows=8), replay_of(streams=2, rows=12)
    ring = small.grown(filled(small, 7), 12)
    assert jax.tree.map(jnp.shape, ring) == jax.tree.map(jnp.shape, large.init())
    ring = filled(large, 4, ring)
    ring, batch, window = compiled(large, "sample")(ring, jax.random.key(0))
    check_batch(large, np.array([11, 11]), batch, window)
    assert small.grown(ring, 8) is ring


def test_trainable_rows():
    assert not trainable_rows(np.array([4, 4]), 16, 5)
    assert trainable_rows(np.array([0, 5]), 16, 5)
    assert not trainable_rows(np.array([100]), 4, 5)
