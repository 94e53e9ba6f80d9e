"""How fast text is written, greedily: on the cache, without it, and by a peer."""

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
    """What is measured.

    Attributes:
      preset: the model, with random weights. dtype: of its activations; empty: the preset's.
      batches: rows at once, with commas: one group each. prompt: tokens of a row. new: tokens that it gets.
      rounds: of each side. peer: a Python file, see speed_peer.py.
    """

    preset: str = "mid"
    dtype: str = ""
    batches: str = "1,8"
    prompt: int = 64
    new: int = 64
    rounds: int = 5
    peer: str = ""

    def __post_init__(self) -> None:
        harness.at_least(self, prompt=1, new=1, rounds=1)
        if 0 in harness.numbers(self.batches, "batches"):
            raise ValueError(f"batches is {self.batches!r}; a batch has at least 1 row")


def measure(settings: Settings, folder: Path) -> list[harness.Group]:
    """A group for every batch size."""
    del folder
    config, params = harness.random_model(settings.preset, settings.dtype)
    peer = baseline.load(settings.peer, config, params, "decode")
    params = prepared(config, params)  # as a `Tuna` does when it is first asked
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
        sides = [ours, harness.compiled("without the cache", whole, params, prefix, **work)]
        said, notes = np.asarray(ours.run()), {}
        if peer is not None:
            request = {"tokens": tokens.tolist(), "new": settings.new}
            told = peer.watched("decode", request)
            run = functools.partial(peer.call, "decode", request)
            side = harness.Side(peer.name, run, memory=told.memory, processor=peer.processor)
            sides.append(dataclasses.replace(side, **work))
            same = np.asarray(told.result) == said[: len(told.result)]
            notes["tokens that the peer says too"] = float(np.mean(same))
        name = f"{settings.new} tokens behind {settings.prompt}, {batch} rows; {settings.preset}"
        groups.append(harness.measure(name, "token", sides, settings.rounds, notes))
    return groups


table, record = harness.table, harness.record


def _flops(config: TunaConfig, params: Any, prefix: Prefix, once: int, new: int) -> int:
    """Of a prompt and `new` tokens, where `once` is of the prompt and a single round of the loop.

    How often a `while` goes round is not in its jaxpr.
    """

    def begin(params: Any, prefix: Prefix) -> Any:
        capacity = prefix.tokens.shape[1] + new
        _, hidden = prefill(config, params, prefix, capacity, with_flow_head=False)
        return tuna.logits(config, params, last_hidden(hidden, prefix.lengths))

    prompt = flops.count(jax.make_jaxpr(begin)(params, prefix))
    return prompt + new * (once - prompt)
