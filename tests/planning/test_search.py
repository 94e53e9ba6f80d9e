"""The formulas of the search: the candidates that fit, what binds, and the meshes that are possible."""

import runpy
from pathlib import Path

import pytest

from tuna_jax.hardware.chips import CHIPS
from tuna_jax.planning import planner, search
from tuna_jax.planning import stage as experiment

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stage():
    values = runpy.run_path(str(ROOT / "experiments/tuna/tuna_1p5b_stage2.py"))[
        "get_config"
    ]().to_dict()
    return experiment.read("tuna_1p5b_stage2", values)


def stream(stage, name):
    return next(each for each in stage.streams() if each.name == name)


def estimate(stage, name="draw", **changes):
    chosen = {"rows": 4, "data": 1, "fsdp": 16, "tensor": 1, "remat": "full", **changes}
    return search.estimate(stage, stream(stage, name), CHIPS["v5e"], search.Candidate(**chosen))


def test_shares_and_largest_batches(stage):
    streams = stage.streams(rows=32)
    assert sum(each.share for each in streams) == pytest.approx(1)
    answer = stream(stage, "answer")
    assert answer.shape.length == 2048  # of (1280, 2048)
    assert answer.tokens == 256 * 2048
    assert all(each.shape.rows == 32 for each in streams)


def test_every_candidate_divides(stage):
    candidates = list(search.candidates(stage, 256))
    assert {c.fsdp for c in candidates} >= {1, 16, 64, 128}
    assert 256 not in {c.fsdp for c in candidates}  # 1,152 does not divide
    assert all(c.data * c.fsdp * c.tensor == 256 for c in candidates)
    assert {c.remat for c in candidates} >= {"none", "full"}


def test_memory_is_split_and_remat_saves_it(stage):
    whole = estimate(stage, fsdp=1, data=16)
    # 4.42 billion parameters, with their average, two moments and gradients: 20 bytes each.
    assert whole.memory > 20 * 4.4e9
    split = estimate(stage, fsdp=16)
    assert whole.memory - split.memory == pytest.approx(20 * 4.42e9 * 15 / 16, rel=0.01)
    kept = [estimate(stage, remat=name).memory for name in ("full", "dots", "none")]
    assert kept == sorted(kept)
    assert kept[0] < kept[2] / 2


def test_formulas_count_what_the_step_computes(stage):
    """At least six FLOPs per parameter and token; with full rematerialisation a third more."""
    plain = estimate(stage, remat="none", rows=32)
    again = estimate(stage, remat="full", rows=32)
    assert plain.binds == again.binds == "compute"
    assert again.seconds / plain.seconds == pytest.approx(4 / 3, rel=0.02)
    layers = 4.42e9 - 151669 * 1536
    usual = (
        6 * layers * 1280 / 197e12
    )  # attention on top; but the encoder has 1,024 tokens, and the modulation one
    assert plain.seconds == pytest.approx(usual, rel=0.15)


def test_few_rows_wait_for_the_network(stage):
    few, many = estimate(stage, rows=1), estimate(stage, rows=32)
    assert few.unhidden > many.unhidden


def test_parts_that_do_not_fill_tiles_are_named(stage):
    """1,152 / 16 = 72 rows are four tiles of 16 and a half; 1,536 / 16 = 96 are six."""
    assert estimate(stage, fsdp=16).padded == ("representation",)
    assert estimate(stage, fsdp=8, data=2).padded == ()
    assert "language" in estimate(stage, fsdp=64).padded


def test_the_best_fits_with_room_and_is_fast(stage):
    def result(fits, spare, step, rows=16):
        return {
            "memory": {"fits": fits, "spare": spare, "peak": 1.0},
            "bound": {"step": step},
            "rows": rows,
        }

    fast, tight, slow, lacking = (
        result(True, 0.2, 1.0), result(True, 0.05, 0.5), result(True, 0.5, 2.0), result(False, -1.0, 0.1)
    )  # fmt: skip
    assert planner.search_best([lacking, slow, tight, fast]) == [fast, slow, tight, lacking]


def test_estimates_keep_what_fits_and_begin_with_the_fastest(stage):
    estimates = search.estimates(stage, stream(stage, "draw"), CHIPS["v5e"], 16)
    assert estimates
    assert all(each.memory <= 0.9 * CHIPS["v5e"].usable for each in estimates)
    assert estimates[0].seconds <= min(each.seconds for each in estimates) * 1.06
