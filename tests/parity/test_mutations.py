"""Mutations: each breaks one detail that is easily wrong, and its golden case must fail."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tuna_jax import flow
from tuna_jax.models import attention, flow_head, representation, rope, vae_layers
from tuna_jax.parity import component_cases, golden_set, model_cases, verify

PUBLIC = Path(__file__).parents[1] / "goldens" / "public"


@pytest.fixture(scope="module")
def public() -> golden_set.GoldenSet:
    return golden_set.load(PUBLIC)


def causal_images(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.sequence_layout

    def broken(spans, length):
        layout = real(spans, length)
        return layout._replace(visible_end=layout.position + 1)

    monkeypatch.setattr(component_cases, "sequence_layout", broken)


def reversed_visual_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    real = rope.flow_head_rotation

    def broken(*arguments):
        rotation = real(*arguments)
        return rotation._replace(pair=-rotation.pair)

    monkeypatch.setattr(rope, "flow_head_rotation", broken)


def half_split_visual_rope(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(x, rotation):
        y = x * rotation.cos[:, :, None]
        d = x.shape[-1]
        swapped = jnp.concatenate([x[..., d // 2 :], x[..., : d // 2]], -1)
        y = y + swapped * rotation.half[:, :, None]
        return y if rotation.pair is None else y + swapped * rotation.pair[:, :, None]

    monkeypatch.setattr(rope, "rotate", broken)


def unshifted_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "shift_time", lambda t, mu: t)


def modulated_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        attention.Layout,
        "one_hot",
        lambda self, slots: jax.nn.one_hot(jnp.maximum(self.slot, 0), slots),
    )


def another_bicubic(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: int, target: int) -> np.ndarray:
        identity = jnp.eye(source)
        return np.asarray(jax.image.resize(identity, (target, source), "cubic", antialias=False))

    monkeypatch.setattr(representation, "bicubic_matrix", broken)


def first_frame_unseen_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """When time is halved, the frames after the first see zeros in its place."""
    real = vae_layers.Downsample.__call__

    def broken(self, x, history=None):
        if self.time_conv is None or history is not None or x.shape[1] == 1:
            return real(self, x, history)
        x = vae_layers._conv2d(x, self.kernel[...], 2, [(0, 1), (0, 1)]) + self.bias[...]
        first, rest = x[:, :1], x[:, 1:]
        halved = self.time_conv(rest, jnp.zeros_like(first))[0]
        return jnp.concatenate([first, halved], axis=1), x[:, -1:]

    monkeypatch.setattr(vae_layers.Downsample, "__call__", broken)


def first_frame_seen_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """When time is doubled, the frames after the first see it instead of zeros."""
    real = vae_layers.Upsample.__call__

    def broken(self, x, history=None):
        if self.time_conv is None or history is not None or x.shape[1] == 1:
            return real(self, x, history)
        seen = jnp.concatenate([jnp.zeros_like(x[:, :1]), x[:, :1]], 1)
        rest, history = self._double_time(x[:, 1:], seen)
        x = jnp.concatenate([x[:, :1], rest], 1)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        y = vae_layers._conv2d(x, self.kernel[...], 1, [(1, 1), (1, 1)]) + self.bias[...]
        return y, history

    monkeypatch.setattr(vae_layers.Upsample, "__call__", broken)


def tanh_gelu_in_the_connector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        representation.Connector,
        "__call__",
        lambda self, x: self.down(jax.nn.gelu(self.up(self.norm(x)), approximate=True)),
    )


def exact_gelu_in_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    real = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate=True: real(x, approximate=False))


def ungated_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text positions have gate 0 instead of 1."""
    monkeypatch.setattr(flow_head, "gated", lambda residual, gate, is_text, x: residual + gate * x)


BREAKAGES: list[tuple[Callable, str, str]] = [
    (causal_images, "llm", "logits"),
    (reversed_visual_rope, "components", "q_rope"),
    (half_split_visual_rope, "components", "k_rope"),
    (unshifted_time, "transport", "t_sampled"),
    (modulated_text, "components", "block0_out"),
    (ungated_text, "components", "block0_out"),
    (another_bicubic, "siglip", "down_4x7.pos_embed"),
    (first_frame_unseen_down, "vae_video", "latents_9f"),
    (first_frame_seen_up, "vae_video", "decoded_z_random"),
    (tanh_gelu_in_the_connector, "siglip", "native_6x6.proj"),
    (exact_gelu_in_the_encoder, "siglip", "native_6x6.hidden"),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("breakage", "case", "tensor"), BREAKAGES, ids=[b[0].__name__ for b in BREAKAGES]
)
def test_a_mutation_fails_its_golden_case(
    public: golden_set.GoldenSet,
    monkeypatch: pytest.MonkeyPatch,
    breakage: Callable,
    case: str,
    tensor: str,
) -> None:
    golden_case = next(c for c in public.cases() if c.name == case)
    expected = golden_case.tensors[tensor]
    # Compiled functions keep the code that they were traced from.
    jax.clear_caches()
    breakage(monkeypatch)
    try:
        computed = model_cases.CASES[case](public, golden_case)
    finally:
        jax.clear_caches()
    error = np.asarray(computed[tensor]) - expected
    relative = np.linalg.norm(error) / np.linalg.norm(expected)
    assert relative > 10 * verify.COMPONENT_TOLERANCE
