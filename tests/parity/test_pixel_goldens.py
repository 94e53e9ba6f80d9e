"""The golden sets of the models on pixels, case by case, and mutations that their cases must find."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from tuna_jax import flow
from tuna_jax.inference.generation import flow_sampler
from tuna_jax.models import tuna
from tuna_jax.parity import golden_set, model_cases, pixel_cases, verify
from tuna_jax.training import augment

GOLDENS = Path(__file__).parents[1] / "goldens"
CASES = [
    (folder.parent.parent.name, folder.parent.name)
    for variant in ("tuna_2", "tuna_r")
    for folder in sorted((GOLDENS / variant).glob("*/meta.json"))
]


@pytest.fixture(scope="module")
def sets() -> dict[str, golden_set.GoldenSet]:
    return {name: golden_set.load(GOLDENS / name) for name in ("tuna_2", "tuna_r")}


def _run(golden: golden_set.GoldenSet, name: str) -> list[verify.Result]:
    case = next(case for case in golden.cases() if case.name == name)
    return verify.compare_case(case, pixel_cases.CASES[name](golden, case))


def test_every_case_of_both_sets_is_run() -> None:
    assert {name for _, name in CASES} == set(pixel_cases.CASES)
    assert len(CASES) == 22


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_case(sets: dict[str, golden_set.GoldenSet], variant: str, name: str) -> None:
    results = _run(sets[variant], name)
    assert [r for r in results if r.status == "FAIL"] == []
    assert any(r.status == "pass" for r in results)


# ---- mutations -----------------------------------------------------------------------------------


def _with(golden: golden_set.GoldenSet, **changes: Any) -> golden_set.GoldenSet:
    return dataclasses.replace(golden, config=dataclasses.replace(golden.config, **changes))


def patches_in_place_of_strips(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(tuna, "in_place", lambda config, predictions: predictions)


def no_noise_scale(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    path = dataclasses.replace(golden.config.flow, noise_scale=1.0)
    return _with(golden, flow=path)


def no_noise_scale_in_sampling(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    real = flow.integrate
    monkeypatch.setattr(flow, "integrate", lambda v, x, *a, **k: real(v, x / 2.0, *a, **k))


def no_floor(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(flow, "remaining", lambda t, floor: jnp.maximum(1e-6, 1.0 - t))


def no_weight(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(flow, "remaining", lambda t, floor: jnp.ones_like(t))


def guidance_on_the_positive_branch(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(flow, "guided", lambda pos, neg, scale: pos + scale * (pos - neg))


def guidance_with_the_state(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    """The velocity of the prediction before guidance, so that guidance has no effect on x."""
    monkeypatch.setattr(flow, "guided", lambda pos, neg, scale: pos)


def shifted_grid(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    real = flow.time_grid
    monkeypatch.setattr(flow, "time_grid", lambda steps, shift: real(steps, 3.0))


def heun_to_the_end(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    real = flow.integrate
    monkeypatch.setattr(
        flow,
        "integrate",
        lambda v, x, grid, solver="euler", euler_at_end=False: real(v, x, grid, solver),
    )


def ends_in_the_interval(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    real = flow.guides
    monkeypatch.setattr(flow, "guides", lambda t, bounds, ends=True: real(t, bounds, True))


def mask_before_the_norm(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    norm = tuna.bind(golden.config, golden.params).embedding.norm

    def broken(mask_token, tokens, hidden):
        token = norm(mask_token[...])
        return jnp.where(hidden[..., None], token, tokens)

    monkeypatch.setattr(tuna, "hide", broken)


def another_norm_eps(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    return _with(golden, patch_norm_eps=1e-6)


def all_images_hidden(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(
        augment, "hidden_counts", lambda share, tokens: jnp.ceil(tokens * share).astype(jnp.int32)
    )


def noise_on_every_image(monkeypatch: pytest.MonkeyPatch, golden: Any) -> Any:
    monkeypatch.setattr(augment, "input_times", lambda coin, level, settings: level)


BREAKAGES: list[tuple[Callable, str, str, str]] = [
    (patches_in_place_of_strips, "tuna_2", "components", "order.pixels"),
    (patches_in_place_of_strips, "tuna_r", "full_t2i_loss", "x_pred"),
    (no_noise_scale, "tuna_2", "full_t2i_wrapper", "loss_flow"),
    (no_noise_scale, "tuna_r", "full_mmu", "noise_xt"),
    (no_noise_scale, "tuna_r", "full_mmu", "noise_loss_ntp"),
    (no_noise_scale_in_sampling, "tuna_2", "t2i_generate", "pixels_final"),
    (no_floor, "tuna_r", "transport", "loss.weights"),
    (no_floor, "tuna_2", "full_t2i_loss", "loss_flow"),
    (no_floor, "tuna_2", "t2i_generate", "pixels_final"),
    (no_weight, "tuna_r", "full_edit", "loss_flow"),
    (guidance_on_the_positive_branch, "tuna_2", "t2i_generate", "pixels_final"),
    (guidance_with_the_state, "tuna_2", "t2i_generate_edit", "pixels_final"),
    (shifted_grid, "tuna_2", "transport", "grid_8"),
    (shifted_grid, "tuna_2", "t2i_generate_edit", "pixels_final"),
    (heun_to_the_end, "tuna_r", "transport", "ode_heun_full"),
    (heun_to_the_end, "tuna_r", "t2i_generate_edit", "pixels_final"),
    (ends_in_the_interval, "tuna_2", "transport", "ode_euler_mid_guidance"),
    (mask_before_the_norm, "tuna_2", "full_t2i_masked", "loss_total"),
    (mask_before_the_norm, "tuna_2", "components", "mask.out"),
    (another_norm_eps, "tuna_2", "components", "norm_out.vision_encoder.norm"),
    (all_images_hidden, "tuna_2", "full_t2i_masked", "masked_tokens"),
    (noise_on_every_image, "tuna_2", "full_mmu", "noise_t"),
]


def _clear() -> None:
    flow_sampler._sample.clear_cache()
    pixel_cases.clear_programs()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breakage", "variant", "case", "tensor"),
    BREAKAGES,
    ids=["-".join((b[0].__name__, b[1], b[2], b[3])) for b in BREAKAGES],
)
def test_a_mutation_fails_its_golden_case(
    sets: dict[str, golden_set.GoldenSet],
    monkeypatch: pytest.MonkeyPatch,
    breakage: Callable,
    variant: str,
    case: str,
    tensor: str,
) -> None:
    _clear()  # A program that was traced before would hide the mutation.
    # No mutation is found by a gradient or by the predictions at t = 0, which are programs of their own.
    losses_of = model_cases.losses_of
    monkeypatch.setattr(model_cases, "losses_and_gradients_of", lambda *x: (losses_of(*x), None))
    monkeypatch.setattr(model_cases, "gradients_of", lambda *x: {})
    monkeypatch.setattr(pixel_cases, "_predictions_at_0", lambda *x: {})
    try:
        golden = breakage(monkeypatch, sets[variant]) or sets[variant]
        results = {r.tensor: r for r in _run(golden, case)}
    finally:
        monkeypatch.undo()
        _clear()
    assert results[tensor].status == "FAIL"
