"""TUNA in lmms-eval (0.7.3): the entry point `lmms_eval.models` finds `manifest`; `--model tuna` runs any of its tasks.

    lmms-eval --model tuna --model_args pretrained=model/ --tasks mmstar,ai2d,videomme --batch_size 16
    lmms-eval --model tuna --model_args pretrained=model/ --tasks hellaswag --force_simple     # multiple choice

lmms-eval has two interfaces. The chat one (the default) says where pictures stand among the words, and generates alone;
the simple one, with `--force_simple`, puts pictures before the question, and runs multiple choice too.
Model arguments: `pretrained` (a workdir, its model.safetensors, or a converted model), `vae`, `tokenizer`, `dtype`,
`frames` (at most so many of a video, 1 + 4k; 17), `template` ('chat' or 'plain'; by default the model's own),
`max_new_tokens` (where a task names none; 128).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    Instance,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from tuna_jax.data.text.tokenizer import IMAGE_TAG
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation_config import DecodingOptions
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.scoring import likelihoods

_AT_ONCE = 256  # requests whose pictures are held in memory together


def manifest() -> ModelManifest:
    """What the entry point returns."""
    return ModelManifest(
        model_id="tuna",
        simple_class_path="tuna_jax.integrations.lmms_eval.TunaSimple",
        chat_class_path="tuna_jax.integrations.lmms_eval.TunaChat",
        aliases=("tuna_jax",),
    )


class TunaSimple(lmms):
    """The simple interface: pictures or a video, then the question; generation and log-likelihood."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "",
        *,
        vae: str = "",
        tokenizer: str = "",
        dtype: str = "",
        frames: int = 17,
        template: str = "",
        max_new_tokens: int = 128,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        del device, max_batch_size  # JAX knows its devices; batches have one size.
        if unknown:
            raise ValueError(f"--model_args of tuna has no {', '.join(unknown)}")
        if not pretrained:
            raise ValueError("--model_args wants pretrained=PATH: a run's workdir or a model")
        self._model = Tuna.load(
            pretrained, vae=vae or None, tokenizer=tokenizer or None, dtype=dtype
        )
        self._frames, self._template = int(frames), template or None
        self._longest, self._batch = int(max_new_tokens), int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, cut before the first of its stop strings."""
        return self._generated([self._asked(*request.args) for request in requests])

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How likely each continuation is, as lmms-eval takes it.

        A choice's number is *minus* its log-likelihood: lmms-eval 0.7.3 takes the choice with the smallest, for its own
        models return losses. A target that the task makes of the document gets the log-likelihood itself, as its
        interface says. Both are wrapped, for a bare pair of numbers would become a text.
        """
        asked, continuations, signs = [], [], []
        for request in requests:
            # For mutual information a choice comes alone, without a document.
            context, continuation, *rest = request.args
            visuals = self._visuals(*rest) if rest else []
            if callable(continuation):
                _, document_id, task, split = rest
                signs.append(1.0)
                continuation = str(continuation(self.task_dict[task][split][document_id]))
            else:
                signs.append(-1.0)
            asked.append((visuals, context))
            # The delimiter before a continuation is white space; in our templates an answer begins a line.
            continuations.append(continuation.strip())
        results = []
        for start in self._slices(len(requests)):
            some = slice(start, start + _AT_ONCE)
            found = likelihoods(
                self._model,
                [self._conversation(*one) for one in asked[some]],
                continuations[some],
                ended=False,
                template=self._template,
                batch_size=self._batch,
            )
            for sign, value, greedy in zip(
                signs[some], found.log_probability, found.greedy, strict=True
            ):
                results.append(GenerationResult(text=(sign * float(value), bool(greedy))))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("tuna runs tasks of one round; this one asks several times")

    def _asked(
        self, context: str, options: Mapping[str, Any], *document: Any
    ) -> tuple[Callable[[], Conversation], Mapping[str, Any]]:
        return lambda: self._conversation(self._visuals(*document), context), options

    def _visuals(
        self, read: Callable[[Any], Any], document_id: int, task: str, split: str
    ) -> list[Any]:
        """Pictures or a video of a document."""
        return list(read(self.task_dict[task][split][document_id]) or [])

    def _conversation(self, visuals: Sequence[Any], text: str) -> Conversation:
        seen = self._model.see([_shown(item) for item in visuals], self._frames)
        tagged = text.count(IMAGE_TAG) == len(seen) > 0
        content = text if tagged else f"{IMAGE_TAG}\n" * len(seen) + text.replace(IMAGE_TAG, "")
        return Conversation(({"role": "user", "content": content},), tuple(seen))

    def _generated(
        self, asked: Sequence[tuple[Callable[[], Conversation], Mapping[str, Any]]]
    ) -> list[str]:
        """Requests with the same options run together."""
        groups: dict[str, list[int]] = {}
        for index, (_, options) in enumerate(asked):
            groups.setdefault(json.dumps(dict(options), sort_keys=True), []).append(index)
        answers = [""] * len(asked)
        for group in groups.values():
            decoding, stops = self._decoding(asked[group[0]][1])
            for start in self._slices(len(group)):
                some = group[start : start + _AT_ONCE]
                # A sampled answer depends on its own number.
                seeds = {"seed": [(0, index) for index in some]}
                replies = self._model.reply([asked[i][0]() for i in some], **decoding, **seeds)
                for index, reply in zip(some, replies, strict=True):
                    ends = [reply.find(stop) for stop in stops if stop in reply]
                    answers[index] = reply[: min(ends)] if ends else reply
        return answers

    def _decoding(self, options: Mapping[str, Any]) -> tuple[DecodingOptions, list[str]]:
        """A task's options in our words, and its stop strings."""
        temperature = float(options.get("temperature") or 0)
        if options.get("do_sample") is False:
            temperature = 0.0
        stops = options.get("until") or []
        decoding: DecodingOptions = {
            "max_new_tokens": int(options.get("max_new_tokens") or self._longest),
            "temperature": temperature,
            "top_k": int(options.get("top_k") or 0),
            "top_p": float(options.get("top_p") or 1),
            "template": self._template,
            "batch_size": self._batch,
        }
        return decoding, [stops] if isinstance(stops, str) else [one for one in stops if one]

    def _slices(self, count: int) -> Any:
        """Where parts of `_AT_ONCE` requests begin, with a progress bar."""
        return tqdm(range(0, count, _AT_ONCE), desc="tuna", disable=count <= _AT_ONCE)


class TunaChat(TunaSimple):
    """The chat interface: messages whose contents are words, pictures and videos in any order."""

    is_simple = False

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Not for chat models in lmms-eval: raises NotImplementedError."""
        raise NotImplementedError("multiple choice by log-likelihood wants --force_simple")

    def _asked(
        self, context: str, options: Any, *document: Any
    ) -> tuple[Callable[[], Conversation], Mapping[str, Any]]:
        # (context, document -> messages, options, document's number, task, split)
        read, (options, document_id, task, split) = options, document
        return lambda: self._chatted(read(self.task_dict[task][split][document_id])), options

    def _chatted(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        said, seen = [], []
        for message in messages:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            text = ""
            for part in parts:
                if part["type"] == "text":
                    text += part["text"].replace(IMAGE_TAG, "")
                elif part["type"] in ("image", "video"):
                    seen.append(_shown(part["url"]))
                    text += f"{IMAGE_TAG}\n"
                else:
                    raise ValueError(f"tuna understands pictures and video, not {part['type']}")
            said.append({"role": message["role"], "content": text})
        return Conversation(tuple(said), tuple(self._model.see(seen, self._frames)))


def _shown(item: Any) -> Any:
    """A picture or file as `Tuna.see` takes it: lmms-eval may hand over a dict with its place."""
    if isinstance(item, Mapping):
        return item.get("url") or item.get("path") or item.get("video")
    return item
