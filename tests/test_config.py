import dataclasses

import pytest

from tuna_jax import config


def test_every_preset_survives_the_round_trip_through_a_dict() -> None:
    for name in config.PRESETS:
        preset = config.preset(name)
        assert config.from_dict(preset.to_dict()) == preset


def test_overrides_reach_nested_fields_and_leave_the_rest() -> None:
    changed = config.from_dict({"preset": "emoji", "language": {"layers": 6}})
    emoji = config.preset("emoji")
    assert changed.language == dataclasses.replace(emoji.language, layers=6)
    assert changed.flow_head == emoji.flow_head


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"languge": {}}, ["model.languge", "language"]),
        ({"language": {"layer": 3}}, ["model.language.layer", "layers"]),
        ({"preset": "tuna"}, ["'tuna'", "tuna_1p5b"]),
        ({"language": {"heads": 3, "kv_heads": 2}}, ["language.heads 3", "kv_heads 2"]),
        ({"flow_head": {"head_dim": 40}}, ["flow_head.head_dim 40"]),
        ({"representation": {"heads": 5}}, ["representation.heads 5"]),
        ({"compute_dtype": "float16"}, ["float16", "bfloat16"]),
        ({"remat": "some"}, ["'some'", "full"]),
        ({"attention_backend": "flash"}, ["'flash'", "xla", "splash"]),
        ({"text_chunk": -1}, ["text_chunk is -1"]),
        ({"vae": {"latent_stats": "wan"}}, ["'wan'", "wan2.2"]),
        ({"vae": {"latent_stats": "tuna"}}, ["vae.latent_stats", "latent_channels=8"]),
        ({"vae": {"halve_time": (True,)}}, ["vae.halve_time"]),
    ],
)
def test_an_invalid_setting_is_named(values: dict, parts: list[str]) -> None:
    with pytest.raises(ValueError) as raised:
        config.from_dict(values)
    for part in parts:
        assert part in str(raised.value)


def test_released_checkpoints_normalise_latents_with_mean_equal_to_std() -> None:
    mean, std = config.VAEConfig().statistics
    assert mean == std
    upstream_mean, upstream_std = config.VAEConfig(latent_stats="wan2.2").statistics
    assert upstream_std == std
    assert upstream_mean != mean
    assert len(mean) == 48


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        ((1, 60, 64), ["height 60", "48, 64"]),
        ((1, 64, 72), ["width 72", "64, 80"]),
        ((4, 64, 64), ["4 frames", "1, 5"]),
        ((0, 64, 64), ["0 frames"]),
    ],
)
def test_a_clip_that_does_not_fit_is_named_with_the_nearest_that_do(
    size: tuple, parts: list[str]
) -> None:
    with pytest.raises(ValueError) as raised:
        config.VAEConfig().latent_shape(*size)
    for part in parts:
        assert part in str(raised.value)


def test_latent_shape() -> None:
    assert config.VAEConfig().latent_shape(9, 64, 96) == (3, 4, 6, 48)
