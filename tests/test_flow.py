import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import flow


def test_shift_keeps_the_ends_and_moves_the_middle_toward_noise() -> None:
    t = jnp.asarray([0.0, 0.5, 1.0])
    shifted = flow.shift_time(t, flow.shift_mu())
    assert abs(float(shifted[0])) < 1e-6 and shifted[2] == 1
    assert shifted[1] < 0.5


def test_the_grid_runs_from_noise_to_clean() -> None:
    grid = flow.time_grid(9)
    assert grid[0] == 0 and grid[-1] == 1 and len(grid) == 10
    assert (np.diff(grid) > 0).all()
    with pytest.raises(ValueError, match="steps is 0"):
        flow.time_grid(0)


def test_heun_is_of_second_order_and_euler_of_first() -> None:
    def error(solver: str, steps: int) -> float:
        grid = jnp.asarray(flow.time_grid(steps, 1.0))
        end, _ = flow.integrate(lambda x, t: -2 * x * t, jnp.float32(1.0), grid, solver)
        return abs(float(end) - float(np.exp(-1.0)))

    assert error("euler", 16) / error("euler", 32) == pytest.approx(2, rel=0.15)
    assert error("heun", 16) / error("heun", 32) == pytest.approx(4, rel=0.25)


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(ValueError, match="solver 'rk4'.* euler, heun"):
        flow.integrate(lambda x, t: x, jnp.zeros(1), jnp.asarray([0.0, 1.0]), "rk4")


def test_guidance_one_is_the_positive_velocity() -> None:
    positive, negative = jnp.asarray([2.0]), jnp.asarray([1.0])
    assert flow.guided(positive, negative, 1.0) == positive
    assert flow.guided(positive, negative, 3.0) == 4.0


@pytest.mark.parametrize("interval", [(0.9, 0.1), (-0.1, 1.0), (0.0, 1.1), (0.5,), (0.1, 0.5, 0.9)])
def test_an_invalid_guidance_interval_is_rejected(interval: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="guidance_interval"):
        flow.guidance_bounds(interval)


def test_both_ends_belong_to_a_guidance_interval() -> None:
    assert flow.guidance_bounds((0.0, 1.0)) is None
    # A time that Heun's method computes as a sum may differ from the grid's by rounding.
    times = jnp.asarray([0.0, 0.19, 0.2, 0.2 + 6e-8, 0.4, 0.40000004, 0.41, 1.0])
    bounds = flow.guidance_bounds((0.2 + 6e-8, 0.4))
    assert bounds is not None
    inside = [bool(flow.guides(t, jnp.asarray(bounds))) for t in times]
    assert inside == [False, False, True, True, True, True, False, False]
