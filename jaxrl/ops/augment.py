"""Random shifts and random brightness of images, what DrQ regularises with."""

import jax
import jax.numpy as jnp

from jaxrl.types import Key


def random_shift(images: jax.Array, key: Key, pad: int) -> jax.Array:
    """Moves each image by up to `pad` pixels in each direction, all (2 pad + 1)^2 shifts alike.

    Args:
      images: [B, h, w, c], of any dtype; all channels of an image move together.
      key: consumed.

    Returns:
      [B, h, w, c], dtype of images.

    Source: Yarats et al. 2021, "Mastering visual continuous control" (DrQ-v2), section 3.1.
    """
    if not pad:
        return images
    return shift(images, jax.random.randint(key, (images.shape[0], 2), -pad, pad + 1))


def shift(images: jax.Array, offset: jax.Array) -> jax.Array:
    """Shows each image from `offset` pixels further on; its border is repeated outside.

        out[b, y, x] = images[b, clip(y + dy_b, 0, h - 1), clip(x + dx_b, 0, w - 1)]

    DrQ-v2 pads the image and samples it on a shifted grid bilinearly; for shifts of whole pixels, the only
    ones it draws, that is this selection.

    Args:
      images: [B, h, w, c].
      offset: [B, 2] i32, (dy, dx).

    Returns:
      [B, h, w, c], dtype of images.
    """
    _, h, w, _ = images.shape
    rows = jnp.clip(jnp.arange(h) + offset[:, :1], 0, h - 1)  # [B, h]
    columns = jnp.clip(jnp.arange(w) + offset[:, 1:], 0, w - 1)  # [B, w]
    return jax.vmap(lambda image, y, x: image[y][:, x])(images, rows, columns)


def random_intensity(images: jax.Array, key: Key, scale: float) -> jax.Array:
    """Multiplies each image by one number, 1 + scale * clip(n, -2, 2) with n normal.

    Args:
      images: [B, h, w, c] floats, black is 0.
      key: consumed.

    Source: Kostrikov et al. 2020, "Image Augmentation Is All You Need" (DrQ on Atari); the form is that of
    dopamine labs/atari_100k.
    """
    if not scale:
        return images
    noise = jnp.clip(jax.random.normal(key, (images.shape[0], 1, 1, 1)), -2, 2)
    return images * (1 + scale * noise).astype(images.dtype)
