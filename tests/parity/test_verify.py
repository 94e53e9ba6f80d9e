"""The public golden set, case by case, and the errors of the checker."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tuna_jax import convert
from tuna_jax.config import preset
from tuna_jax.conversion import weight_map
from tuna_jax.parity import component_cases, golden_set, model_cases, verify

GOLDENS = Path(__file__).parents[1] / "goldens"
PUBLIC = GOLDENS / "public"


@pytest.fixture(scope="module")
def public() -> golden_set.GoldenSet:
    return golden_set.load(PUBLIC)


def _run(public: golden_set.GoldenSet, name: str) -> list[verify.Result]:
    case = next(case for case in public.cases() if case.name == name)
    return verify.compare_case(case, model_cases.CASES[name](public, case))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(model_cases.CASES))
def test_case(public: golden_set.GoldenSet, name: str) -> None:
    results = _run(public, name)
    assert [r for r in results if r.status == "FAIL"] == []
    assert any(r.status == "pass" for r in results)


def test_every_case_of_the_set_is_run() -> None:
    assert {path.parent.name for path in PUBLIC.glob("*/meta.json")} == set(model_cases.CASES)


def test_only_the_exclusions_of_the_readme() -> None:
    assert set(verify.EXCLUDED) == {
        "components/quirk_q_rope",
        "components/quirk_k_rope",
        "components/block0_out_rope_none",
        "text_only/v_pred_all",
        "text_only/mix_loss_flow",
        "text_only/mix_v_pred_all",
        "text_only/ds_logits",
        "text_only/ds_loss_ntp",
        "text_only/ds_v_pred_all",
        "full_mmu/loss_flow_official",
        "full_mmu/noise_loss_official",
        "transport/loss_empty_mask_official",
        "text_only/x0_pred_all_norm",
        "full_mmu/wrapper_total_loss_mmu",
        "vae_video/latents_11f",
        "vae_video/log_var_11f",
    }


def test_full_size_manifests_match_exactly(capsys: pytest.CaptureFixture) -> None:
    for name, count in (
        ("tuna_2b", 1488),
        ("tuna_7b", 1176),
        ("tuna_2r_pixel_7b", 980),
        ("tuna_2_pixel_7b", 560),
    ):
        path = GOLDENS / "manifests" / f"{name}.json"
        assert convert.main(["verify", "--manifest", str(path)]) == 0
        assert f"{count} keys" in capsys.readouterr().out


def test_all_differences_of_a_manifest_are_listed(tmp_path: Path) -> None:
    manifest = json.loads((GOLDENS / "manifests" / "tuna_2b.json").read_text())
    del manifest["keys"]["siglip_proj.1.bias"]
    manifest["keys"]["siglip_proj.9.bias"] = {"shape": [3]}
    manifest["keys"]["tuna.model.norm.weight"]["shape"] = [7]
    path = tmp_path / "tuna_2b.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(weight_map.ConversionError) as raised:
        verify.check_manifest(preset("tuna_1p5b"), path)
    for text in (
        "missing: siglip_proj.1.bias [1536]",
        "unexpected: siglip_proj.9.bias [3]",
        "wrong shape: tuna.model.norm.weight is [7]",
    ):
        assert text in str(raised.value)


def _broken_copy(tmp_path: Path, change) -> Path:
    copy = tmp_path / "set"
    copy.mkdir()
    shutil.copy(PUBLIC / "state_dict.json", copy)
    shutil.copy(PUBLIC / "vae.safetensors", copy)
    state = load_file(PUBLIC / "model.safetensors")
    change(state)
    save_file(state, copy / "model.safetensors")
    return copy


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        (lambda s: s.pop("siglip_proj.1.bias"), ["missing: siglip_proj.1.bias [64]"]),
        (lambda s: s.update(extra=np.zeros(2, np.float32)), ["unexpected: extra [2]"]),
        (
            lambda s: s.update({"siglip_proj.0.weight": np.zeros(3, np.float32)}),
            ["wrong shape: siglip_proj.0.weight is [3]"],
        ),
        (
            lambda s: s.update({"tuna.lm_head.weight": np.zeros((320, 64), np.float32)}),
            ["tuna.lm_head.weight", "tuna.model.embed_tokens.weight"],
        ),
    ],
)  # fmt: skip
def test_a_state_dict_that_does_not_match_is_an_error(tmp_path: Path, change, texts: list) -> None:
    with pytest.raises(weight_map.ConversionError) as raised:
        golden_set.load(_broken_copy(tmp_path, change))
    for text in texts:
        assert text in str(raised.value)


def test_a_tied_head_may_be_absent(tmp_path: Path, public: golden_set.GoldenSet) -> None:
    lean = golden_set.load(_broken_copy(tmp_path, lambda s: s.pop("tuna.lm_head.weight")))
    assert jax.tree.all(jax.tree.map(np.array_equal, lean.params, public.params))


def test_a_round_trip_keeps_every_bit(public: golden_set.GoldenSet) -> None:
    params = {**public.params, "vae": public.vae_params}
    state = weight_map.to_torch(public.config, jax.tree.map(np.asarray, params))
    original = load_file(PUBLIC / "model.safetensors")
    vae = load_file(PUBLIC / "vae.safetensors")
    original |= {f"vae.model.{key}": tensor for key, tensor in vae.items()}
    assert state.keys() == original.keys()
    for key, tensor in original.items():
        np.testing.assert_array_equal(state[key], tensor, err_msg=key)


def test_an_unknown_case_fails(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copy = _broken_copy(tmp_path, lambda s: None)
    shutil.copytree(PUBLIC / "transport", copy / "transport")
    shutil.copytree(PUBLIC / "transport", copy / "teleport")
    assert convert.main(["verify", str(copy)]) == 1
    out = capsys.readouterr().out
    assert "unknown case" in out and "1 failed" in out


def test_a_wrong_number_and_a_missing_output_fail(tmp_path: Path) -> None:
    copy = _broken_copy(tmp_path, lambda s: None)
    shutil.copytree(PUBLIC / "transport", copy / "transport")
    tensors = load_file(copy / "transport" / "tensors.safetensors")
    tensors["grid_9_shift3"] = tensors["grid_9_shift3"] * np.float32(1.0001)
    tensors["novelty"] = np.ones(3, np.float32)
    save_file(tensors, copy / "transport" / "tensors.safetensors")
    meta = json.loads((copy / "transport" / "meta.json").read_text())
    meta["tensors"]["novelty"] = {"role": "output"}
    (copy / "transport" / "meta.json").write_text(json.dumps(meta))
    failed = {r.tensor for r in verify.verify(copy) if r.status == "FAIL"}
    assert failed == {"grid_9_shift3", "novelty"}


def test_a_folder_without_a_golden_set_is_an_error(tmp_path: Path, capsys) -> None:
    assert convert.main(["verify", str(tmp_path)]) == 1
    assert "state_dict.json" in capsys.readouterr().err
    (tmp_path / "state_dict.json").write_text("{")
    with pytest.raises(golden_set.GoldenError, match=r"state_dict\.json"):
        golden_set.load(tmp_path)


def test_clips_of_other_lengths_are_refused_by_rule(public: golden_set.GoldenSet) -> None:
    """A golden set with 7 frames in place of 11 ended the command, and the cases after it were not run."""
    assert [n for n in range(14) if component_cases.is_clip_length(n, 4)] == [1, 5, 9, 13]
    for name in ("latents_7f", "log_var_12f", "decoded_2f"):
        assert "not 1 + 4k" in verify.excluded(f"vae_video/{name}")
    assert verify.excluded("vae_video/latents_13f") == ""
    case = next(case for case in public.cases() if case.name == "vae_video")
    tensors = {
        name.replace("_11f", "_7f"): value
        for name, value in case.tensors.items()
        if not re.fullmatch(r"(latents|log_var|decoded)_\d+f", name) or "_11f" in name
    }
    meta = {name.replace("_11f", "_7f"): value for name, value in case.meta["tensors"].items()}
    other = dataclasses.replace(case, tensors=tensors, meta={**case.meta, "tensors": meta})
    results = verify.compare_case(other, component_cases.vae_video(public, other))
    status = {result.tensor: result.status for result in results}
    assert status["latents_7f"] == status["log_var_7f"] == "excluded"
    assert "FAIL" not in status.values()


def test_a_case_that_raises_is_a_failed_row(public: golden_set.GoldenSet) -> None:
    case = next(case for case in public.cases() if case.name == "transport")

    def run(golden, case):
        raise ValueError("a line\nof two")

    (result,) = verify._run_case(public, case, run)
    assert (result.case, result.tensor, result.status) == ("transport", "*", "FAIL")
    assert result.note == "a line of two"

    def broken(golden, case):
        raise IndexError("7")

    assert verify._run_case(public, case, broken)[0].note == "IndexError: 7"
