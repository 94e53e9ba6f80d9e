"""Run records: their JSON, and the records that are derived for models of earlier versions."""

import dataclasses
import json

import pytest

from tuna_jax.config import from_dict, preset
from tuna_jax.inference import run_record
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.inference.run_record import IN_MODEL, RECORD_KEY, RunRecord

RECORD = RunRecord(
    kind="multitask",
    model={"preset": "tiny", "language": {"vocabulary": 640}},
    vae="wan.safetensors",
    tokenizer="emoji",
    template="plain",
    size=(256, 384),
    sampling=SamplingSettings(steps=7, guidance=2.5, guidance_interval=(0.1, 0.8), solver="heun"),
)


def test_a_record_survives_json():
    values = json.loads(json.dumps(RECORD.to_json()))
    assert RunRecord.from_json(values) == RECORD
    whole = dataclasses.replace(RECORD, model=preset("tuna_7b").to_dict())
    assert RunRecord.from_json(whole.to_json()).config == preset("tuna_7b")


def test_defaults_may_be_left_out():
    record = RunRecord.from_json({"kind": "emoji", "model": {}, "size": [64, 64]})
    assert record == RunRecord(kind="emoji", model={}, size=(64, 64))
    assert record.config == preset("tiny")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"vea": "x"}, rf"{RECORD_KEY}\.vea"),
        ({"sampling": {"point": 3}}, rf"{RECORD_KEY}\.sampling\.point"),
        ({"kind": 3}, rf"{RECORD_KEY}\.kind"),
    ],
)
def test_an_invalid_key_is_named(change, key):
    with pytest.raises(ValueError, match=key):
        RunRecord.from_json(RECORD.to_json() | change)


@pytest.mark.parametrize("key", ["kind", "model", "size"])
def test_a_missing_key_is_named(key):
    values = RECORD.to_json()
    values.pop(key)
    with pytest.raises(ValueError, match=rf"{RECORD_KEY}\.{key}"):
        RunRecord.from_json(values)


def test_an_unknown_key_of_the_model_is_named():
    record = dataclasses.replace(RECORD, model={"languge": {}})
    with pytest.raises(ValueError, match=r"model\.languge"):
        _ = record.config


def test_a_converted_model_has_its_vae_and_the_size_of_its_encoders_grid():
    record = run_record.of_converted(preset("tuna_1p5b"))
    assert record.kind == "converted" and record.vae == IN_MODEL and record.tokenizer == ""
    assert record.template == "chat" and record.size == (512, 512)
    assert record.config == preset("tuna_1p5b")
    assert record.sampling == SamplingSettings(steps=49, guidance=3.0)
    assert RunRecord.from_json(record.to_json()).config == record.config


EMOJI_RUN = {
    "kind": "tuna",
    "model": {"preset": "tiny", "language": {"vocabulary": 640}},
    "vae": "vae.safetensors",
    "data": {"size": 32, "vocabulary": "emoji", "draw_rows": 6, "understand_rows": 2},
    "samples": {"count": 8, "points": 16, "guidance": 2.0, "shift": 3.0, "solver": "heun"},
    "train": {"steps": 10},
}


def test_an_old_emoji_run_has_the_plain_template_and_counts_steps():
    assert run_record.of_old_run(EMOJI_RUN) == RunRecord(
        kind="emoji",
        model={"preset": "tiny", "language": {"vocabulary": 640}, "vae": {"by_frame": False}},
        vae="vae.safetensors",
        tokenizer="emoji",
        template="plain",
        size=(32, 32),
        sampling=SamplingSettings(count=8, steps=15, guidance=2.0, shift=3.0, solver="heun"),
    )
    assert EMOJI_RUN["samples"]["points"] == 16, "the stored settings do not change"


@pytest.mark.parametrize("rows", ["draw_rows", "understand_rows", "generation_rows"])
def test_an_old_emoji_run_with_clips_encodes_frames_one_by_one(rows):
    data = EMOJI_RUN["data"] | {"clips": {rows: 2}}
    record = run_record.of_old_run(EMOJI_RUN | {"data": data})
    assert record.config.vae.by_frame
    assert record.config == from_dict(
        {"preset": "tiny", "language": {"vocabulary": 640}, "vae": {"by_frame": True}}
    )


def test_an_old_run_of_streams_has_its_size_and_sampling():
    record = run_record.of_old_run(
        {
            "kind": "mixture",
            "model": {"preset": "tuna_1p5b"},
            "start_from": "model/",
            "vae": "wan.safetensors",
            "data": {"vocabulary": "", "bad_share": 0.01},
            "samples": {"points": 31, "size": "256x384", "prompts": ["a dog"], "guidance": 4.0},
        }
    )
    assert record == RunRecord(
        kind="multitask",
        model={"preset": "tuna_1p5b"},
        vae="wan.safetensors",
        size=(256, 384),
        sampling=SamplingSettings(steps=30, guidance=4.0, shift=3.0),
    )


def test_an_old_run_of_streams_without_samples_has_the_defaults():
    record = run_record.of_old_run({"kind": "mixture", "model": {}, "samples": {"size": "128"}})
    assert record.size == (128, 128) and record.vae == "" and record.template == "chat"
    assert record.sampling == SamplingSettings(steps=49, guidance=3.0)
    assert run_record.of_old_run({"kind": "mixture", "model": {}}).size == (512, 512)
