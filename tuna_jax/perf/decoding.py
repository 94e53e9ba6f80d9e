"""Measures greedy text decoding: with the prefix cache, without it, and by a baseline."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np

from tuna_jax.config import TunaConfig
from tuna_jax.hardware import flops
from tuna_jax.inference.generation import reference, text_decoder
from tuna_jax.inference.generation.prefix_cache import (
    Prefix,
    last_hidden,
    prefill,
    prepared,
    text_prefix,
)
from tuna_jax.models import tuna
from tuna_jax.perf import baseline, harness


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      preset: the model, with random weights.
      dtype: of its activations; empty: as in the preset.
      batches: batch sizes, separated by commas; each is a group.
      prompt: tokens per row of the prompt.
      new: tokens to decode per row.
      rounds: of each variant.
      baseline: a Python file, see perf/baseline.py; empty: none.
    """

    preset: str = "mid"
    dtype: str = ""
    batches: str = "1,8"
    prompt: int = 64
    new: int = 64
    rounds: int = 5
    baseline: str = ""

    def __post_init__(self) -> None:
        harness.at_least(self, prompt=1, new=1, rounds=1)
        if 0 in harness.numbers(self.batches, "batches"):
            raise ValueError(f"batches is {self.batches!r}; a batch has at least 1 row")


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """A group for every batch size."""
    del folder
    config, params = harness.random_model(settings.preset, settings.dtype)
    other = baseline.load(settings.baseline, config, params, "decode")
    params = prepared(config, params)  # as `Tuna` does on first use
    random, groups = np.random.default_rng(0), []
    for batch in harness.numbers(settings.batches, "batches"):
        tokens = random.integers(8, config.language.vocabulary, (batch, settings.prompt))
        tokens = tokens.astype(np.int32)
        prefix = text_prefix(tokens, np.full(batch, settings.prompt, np.int32))

        def cached(params: Any, prefix: Prefix, key: jax.Array) -> Any:
            most = settings.new
            return text_decoder.generate(
                config, params, prefix, key, eos=-1, max_new_tokens=most
            ).tokens

        def whole(params: Any, prefix: Prefix) -> Any:
            return reference.generate(config, params, prefix, max_new_tokens=settings.new)

        work = {"work": batch * settings.new}
        ours = harness.compiled("tuna_jax", cached, params, prefix, jax.random.key(0), **work)
        counted = _flops(config, params, prefix, ours.flops, settings.new)
        ours = dataclasses.replace(ours, flops=counted)
        variants = [ours, harness.compiled("without the cache", whole, params, prefix, **work)]
        decoded, notes = np.asarray(ours.run()), {}
        if other is not None:
            request = {"tokens": tokens.tolist(), "new": settings.new}
            first = other.measured("decode", request)
            run = functools.partial(other.call, "decode", request)
            variants.append(
                harness.Variant(
                    other.name, run, memory=first.memory, processor=other.processor, **work
                )
            )
            same = np.asarray(first.result) == decoded[: len(first.result)]
            notes["share of tokens equal to the baseline's"] = float(np.mean(same))
        name = f"{settings.new} tokens after {settings.prompt}, {batch} rows; {settings.preset}"
        groups.append(harness.measure(name, "token", variants, settings.rounds, notes))
    return groups


table, record = harness.table, harness.record


def _flops(config: TunaConfig, params: Any, prefix: Prefix, once: int, new: int) -> int:
    """FLOPs of a prompt and `new` tokens, given those of the prompt and one round of the loop.

    The number of rounds of a `while` is not in its jaxpr.
    """

    def begin(params: Any, prefix: Prefix) -> Any:
        capacity = prefix.tokens.shape[1] + new
        _, hidden = prefill(config, params, prefix, capacity, with_flow_head=False)
        return tuna.logits(config, params, last_hidden(hidden, prefix.lengths))

    prompt = flops.count(jax.make_jaxpr(begin)(params, prefix))
    return prompt + new * (once - prompt)
