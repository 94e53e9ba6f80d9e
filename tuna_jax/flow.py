"""Flow matching: the probability path, time sampling, guidance and solvers (model.md sections 2 and 9).

`t = 0` is noise and `t = 1` is clean: `x_t = t x_1 + (1 - t) x_0`, velocity `u = x_1 - x_0`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Velocity = Callable[[Array, Array], Array]
"""(x, t) -> dx/dt"""

# mu is linear in the number of image tokens through these two points; the released code always evaluates it at 1024.
_SHIFT_LOW, _SHIFT_HIGH = (256, 0.5), (4096, 1.15)
SHIFT_TOKENS = 1024

EVERYWHERE = (0.0, 1.0)
"""The guidance interval that includes all times."""
_ROUNDING = 1e-6  # Tolerance for a time of the grid, in float32, that is meant to be an end of the interval.


def shift_mu(tokens: int = SHIFT_TOKENS) -> float:
    """mu of the time shift for `tokens` image tokens."""
    (x0, y0), (x1, y1) = _SHIFT_LOW, _SHIFT_HIGH
    return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


def shift_time(t: Float[Array, "*b"], mu: float) -> Float[Array, "*b"]:
    """Shifts t toward noise: with `s = 1 - t`, `s <- e^mu / (e^mu + 1/s - 1)`. t = 0 and t = 1 do not change."""
    s = 1.0 - t
    safe = jnp.where(s > 0, s, 1.0)
    return 1.0 - jnp.where(s > 0, math.exp(mu) / (math.exp(mu) + 1.0 / safe - 1.0), 0.0)


def training_time(
    normal: Float[Array, "*b"], *, t_min: float = 0.0, mu: float | None = None
) -> Float[Array, "*b"]:
    """Training times from standard normal samples u: `sigmoid(u) (1 - t_min) + t_min`, then shifted.

    Args:
      normal: samples; scale and shift them for another logit-normal distribution.
      t_min: smallest time; 1 gives exactly 1 (understanding, the source of an edit).
      mu: strength of the shift; None: no shift. The released code uses `shift_mu()`.
    """
    t = jax.nn.sigmoid(normal) * (1.0 - t_min) + t_min
    return t if mu is None else shift_time(t, mu)


def sample_time(
    key: Array,
    shape: tuple[int, ...],
    *,
    mean: float = 0.0,
    std: float = 1.0,
    mu: float | None = None,
) -> Float[Array, ...]:
    """`training_time` of normal samples with the given mean and standard deviation, float32 of shape `shape`."""
    return training_time(mean + std * jax.random.normal(key, shape, jnp.float32), mu=mu)


def interpolate(
    clean: Float[Array, "*b c"], noise: Float[Array, "*b c"], t: Float[Array, ...]
) -> Float[Array, "*b c"]:
    """`x_t = t x_1 + (1 - t) x_0`; t has the leading axes of x and is broadcast over the rest."""
    t = t.reshape(t.shape + (1,) * (clean.ndim - t.ndim))
    return t * clean + (1.0 - t) * noise


def remaining(t: Float[Array, "*b"], floor: float) -> Float[Array, "*b"]:
    """`max(floor, 1 - t)`, by which a clean prediction is divided (model.md section 12)."""
    return jnp.maximum(floor, 1.0 - t)


def velocity_from_clean(
    clean: Float[Array, "*b c"], x: Float[Array, "*b c"], t: Float[Array, ...], floor: float
) -> Float[Array, "*b c"]:
    """`v = (x_1 - x_t) / max(floor, 1 - t)`; t has the leading axes of x."""
    return (clean - x) / remaining(t, floor).reshape(t.shape + (1,) * (x.ndim - t.ndim))


def clean_from_velocity(
    velocity: Float[Array, "*b c"], x: Float[Array, "*b c"], t: Float[Array, ...], floor: float
) -> Float[Array, "*b c"]:
    """The inverse of `velocity_from_clean`."""
    return x + velocity * remaining(t, floor).reshape(t.shape + (1,) * (x.ndim - t.ndim))


def time_grid(steps: int, shift: float = 3.0) -> Float[np.ndarray, " points"]:
    """The `steps + 1` sampling times of `steps` solver steps: `linspace(0, 1)` mapped by `t / (t + a - a t)`; a = 1 is
    a uniform grid.

    The released code counts points: its `num_steps=50` is `steps=49` here.

    Raises:
      ValueError: `steps` is less than 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; sampling requires at least 1 solver step")
    t = np.linspace(0.0, 1.0, steps + 1, dtype=np.float32)
    if shift == 1.0:
        return t
    return (t / (t + shift - shift * t)).astype(np.float32)


def guided(
    positive: Float[Array, "*b"], negative: Float[Array, "*b"], scale: float | Array
) -> Float[Array, "*b"]:
    """Classifier-free guidance: `v_neg + scale (v_pos - v_neg)`."""
    return negative + scale * (positive - negative)


def guided_by_image_and_text(
    both: Float[Array, "*b"],
    image: Float[Array, "*b"],
    neither: Float[Array, "*b"],
    scale: float | Array,
    image_scale: float | Array,
) -> Float[Array, "*b"]:
    """Guidance with a scale for the text and one for the images that are given:
    `v_0 + image_scale (v_image - v_0) + scale (v_both - v_image)` (InstructPix2Pix, arXiv 2211.09800, equation 3).

    With `image_scale` 1 it is `guided(both, image, scale)`.

    Args:
      both: predicted from the images and the text.
      image: from the images and the empty or negative text.
      neither: from only that text.
      scale: of the text.
      image_scale: of the images.
    """
    return neither + image_scale * (image - neither) + scale * (both - image)


def guidance_bounds(interval: Sequence[float]) -> Float[np.ndarray, " 2"] | None:
    """(low, high) of a guidance interval, float32; None if it includes all times.

    Raises:
      ValueError: `interval` is not two numbers with 0 <= low <= high <= 1.
    """
    if len(interval) != 2 or not 0.0 <= interval[0] <= interval[1] <= 1.0:
        raise ValueError(
            f"guidance_interval is {tuple(interval)}; it must be two times, low and high, with "
            "0 (noise) <= low <= high <= 1 (clean)"
        )
    return None if tuple(interval) == EVERYWHERE else np.asarray(interval, np.float32)


def guides(t: Float[Any, ""], bounds: Float[Any, " 2"], ends: bool = True) -> Bool[Any, ""]:
    """Whether time t is within the bounds of a guidance interval.

    Args:
      t: a time of the grid; of NumPy, so is the result.
      bounds: (low, high).
      ends: whether both ends are in it. Without them, 0 as the lower end still is (model.md section 12).
    """
    if not ends:
        above = (bounds[0] == 0.0) | (t > bounds[0] + _ROUNDING)
        return above & (t < bounds[1] - _ROUNDING)
    return (t >= bounds[0] - _ROUNDING) & (t <= bounds[1] + _ROUNDING)


def euler_step(velocity: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """One step of Euler's method: first order, one evaluation of the velocity."""
    return x + dt * velocity(x, t)


def heun_step(velocity: Velocity, x: Array, t: Array, dt: Array) -> Array:
    """One step of Heun's method: second order, the mean of the velocities at both ends of the step."""
    first = velocity(x, t)
    return x + 0.5 * dt * (first + velocity(x + dt * first, t + dt))


SOLVERS = {"euler": euler_step, "heun": heun_step}


def integrate(
    velocity: Velocity,
    x: Array,
    grid: Float[Array, " points"],
    solver: str = "euler",
    *,
    euler_at_end: bool = False,
) -> tuple[Array, Array]:
    """Solves `dx/dt = velocity(x, t)` along the grid in one `lax.scan`.

    Args:
      velocity: `(x, t) -> dx/dt`, with t a scalar array.
      x: state at `grid[0]`.
      grid: increasing times, one more than the solver steps.
      solver: 'euler' or 'heun'.
      euler_at_end: whether the last step is one of Euler's method, which does not evaluate the velocity at `grid[-1]`.

    Returns:
      The state at `grid[-1]`, and the states after every step, `[steps, ...]`.

    Raises:
      ValueError: the solver is unknown.
    """
    if solver not in SOLVERS:
        raise ValueError(f"unknown solver {solver!r}; choose one of {', '.join(SOLVERS)}")
    grid = jnp.asarray(grid, jnp.float32)

    def step(state: Array, times: tuple[Array, Array]) -> tuple[Array, Array]:
        t, next_t = times
        state = SOLVERS[solver](velocity, state, t, next_t - t)
        return state, state

    if not euler_at_end or solver == "euler":
        return jax.lax.scan(step, x, (grid[:-1], grid[1:]))
    before, states = jax.lax.scan(step, x, (grid[:-2], grid[1:-1]))
    final = euler_step(velocity, before, grid[-2], grid[-1] - grid[-2])
    return final, jnp.concatenate([states, final[None]])
