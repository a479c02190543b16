"""λ-returns: of imagined rollouts, and of replayed sequences with imagined bootstraps."""

import chex
import jax
import jax.numpy as jnp


def lambda_return(reward: jax.Array, discount: jax.Array, value: jax.Array, lam: float) -> jax.Array:
    """λ-return of each of N sequences.

        G_t = r_{t+1} + d_{t+1} ((1 - lam) v_{t+1} + lam G_{t+1}),   G_H = v_H

    Args:
      reward:   [H, N] f32, r_1..r_H, reward that arrived with step t.
      discount: [H, N] f32 in [0, 1], d_1..d_H, 0 where the episode terminated.
      value:    [H, N] f32, v_1..v_H, in reward units.
      lam:      in [0, 1].

    Returns:
      [H, N] f32, G_0..G_{H-1}. Differentiable in every input.

    Source: Sutton & Barto, 2nd ed., section 12.8.
    """
    chex.assert_equal_shape([reward, discount, value])
    return _backward(reward + discount * (1 - lam) * value, discount * lam, value[-1])


def replay_return(
    reward: jax.Array,
    is_last: jax.Array,
    is_terminal: jax.Array,
    bootstrap: jax.Array,
    gamma: float,
    lam: float,
) -> jax.Array:
    """λ-return of replayed rows, bootstrapped from an estimate of each row's return.

        G_t = r_{t+1} + γ (1 - term_{t+1}) ((1 - c_{t+1}) b_{t+1} + c_{t+1} G_{t+1})
        c_t = lam (1 - last_t),   G_{T-1} = b_{T-1}

    A row that is last but not terminal (time limit) passes its bootstrap on, a terminal one nothing.

    Args:
      reward: [T, B] f32; is_last, is_terminal: [T, B] bool; bootstrap: [T, B] f32, b_t.
      gamma: discount per row; lam: in [0, 1].

    Returns:
      [T-1, B] f32, G_0..G_{T-2}. G_t of a row that is last belongs to another episode: mask it.

    Source: dreamerv3 agent.py, replay value loss.
    """
    chex.assert_equal_shape([reward, is_last, is_terminal, bootstrap])
    live = gamma * (1.0 - is_terminal[1:])
    mix = lam * (1.0 - is_last[1:])
    return _backward(reward[1:] + live * (1 - mix) * bootstrap[1:], live * mix, bootstrap[-1])


def _backward(add: jax.Array, factor: jax.Array, last: jax.Array) -> jax.Array:
    """G_t = add_t + factor_t G_{t+1} along the first axis, G_T = last: [T, N] -> [T, N].

    In log T steps that a GPU does in one kernel or two; step by step it would be three kernels a step.
    """

    def then(later, earlier):
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    add = add.at[-1].add(factor[-1] * last)
    return jax.lax.associative_scan(then, (add, factor), reverse=True)[0]


def discount_weights(discount: jax.Array) -> jax.Array:
    """w_t = Π_{k<=t} d_k along the first axis, index 0 included: [H, N] -> [H, N]."""
    return jnp.cumprod(discount, 0)
