"""Random shifts against the bilinear sampling that they stand for, random brightness by its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.ops.augment import random_intensity, random_shift, shift

PAD = 4


def grid_sample(image, sx, sy, pad=PAD):
    """One image [h, w, c] as DrQ-v2's program shifts it, in float64: padded, sampled bilinearly on a grid.

    The base grid has `h` of the padded image's own points, in coordinates from -1 to 1 over its edges; a
    shift of one is 2 / (h + 2 pad). Points outside count as zeros.
    """
    h = image.shape[0]
    side = h + 2 * pad
    padded = np.pad(image.astype(np.float64), ((pad, pad), (pad, pad), (0, 0)), mode="edge")
    eps = 1.0 / side
    base = np.linspace(-1.0 + eps, 1.0 - eps, side)[:h]
    x, y = (((base + 2.0 / side * s + 1) * side - 1) / 2 for s in (sx, sy))
    out = np.zeros_like(image, np.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = np.floor(y).astype(int) + dy, np.floor(x).astype(int) + dx
            weight = (1 - abs(y - row))[:, None] * (1 - abs(x - column))[None, :]
            inside = ((row >= 0) & (row < side))[:, None] & ((column >= 0) & (column < side))[None, :]
            picked = padded[np.clip(row, 0, side - 1)][:, np.clip(column, 0, side - 1)]
            out += (weight * inside)[..., None] * picked
    return out


@pytest.mark.parametrize("size", [84, 32])
def test_every_shift_is_the_bilinear_sample(size):
    """All 81 shifts of an image of noise, the hardest there is for a sample that is a little off."""
    image = np.random.default_rng(size).integers(0, 256, (size, size, 9), np.uint8)
    steps = [(sy, sx) for sy in range(2 * PAD + 1) for sx in range(2 * PAD + 1)]
    offsets = jnp.array(steps, jnp.int32) - PAD
    got = np.asarray(jax.jit(shift)(jnp.broadcast_to(image, (81, *image.shape)), offsets))
    assert got.dtype == np.uint8
    for (sy, sx), shifted in zip(steps, got, strict=True):
        want = grid_sample(image, sx, sy)
        assert np.abs(shifted - want).max() < 0.01, (sy, sx)


def test_a_shift_moves_rows_and_columns_and_repeats_the_border():
    image = jnp.arange(12, dtype=jnp.uint8).reshape(1, 3, 4, 1)  # not square
    got = shift(image, jnp.array([[1, -2]]))[0, :, :, 0]
    np.testing.assert_array_equal(got, [[4, 4, 4, 5], [8, 8, 8, 9], [8, 8, 8, 9]])


def test_shifts_are_drawn_for_each_image_and_all_alike():
    """A single bright pixel shows the shift of an image; channels move together."""
    n, size = 4_000, 16
    images = np.zeros((n, size, size, 2), np.uint8)
    images[:, 8, 8] = 200
    got = np.asarray(jax.jit(random_shift, static_argnums=2)(images, jax.random.key(0), PAD))
    np.testing.assert_array_equal(got[..., 0], got[..., 1])
    assert (got.reshape(n, -1).sum(1) == 400).all()
    where = got[..., 0].reshape(n, -1).argmax(1)
    offset = np.stack([8 - where // size, 8 - where % size])
    shares = np.zeros((9, 9))
    np.add.at(shares, tuple(offset + PAD), 1 / n)
    assert shares.sum() == pytest.approx(1)
    assert (np.abs(shares - 1 / 81) < 5 * np.sqrt(1 / 81 / n)).all()
    again = random_shift(images, jax.random.key(1), PAD)
    assert not np.array_equal(again, got)
    np.testing.assert_array_equal(random_shift(images, jax.random.key(1), 0), images)


def test_intensity_multiplies_each_image_by_one_number_near_one():
    images = np.full((5_000, 2, 2, 3), 100, np.float32)
    got = np.asarray(random_intensity(jnp.asarray(images), jax.random.key(0), 0.05))
    assert (got == got[:, :1, :1, :1]).all()
    factor = got[:, 0, 0, 0] / 100
    np.testing.assert_allclose([factor.min(), factor.max()], [0.9, 1.1], rtol=1e-6)  # two deviations
    at_the_ends = (np.abs(factor - 1) > 0.1 - 1e-6).mean()
    assert abs(at_the_ends - 0.0455) < 0.012  # of a normal number beyond two deviations
    assert abs(factor.mean() - 1) < 0.003 and abs(factor.std() - 0.05 * 0.959) < 0.002
    np.testing.assert_array_equal(random_intensity(jnp.asarray(images), jax.random.key(0), 0.0), images)
