"""TUNA in lmms-eval (0.7.3): the entry point `lmms_eval.models` names `manifest`; `--model tuna` runs any of its tasks.

    lmms-eval --model tuna --model_args pretrained=model/ --tasks mmstar,ai2d,videomme --batch_size 16
    lmms-eval --model tuna --model_args pretrained=model/ --tasks hellaswag --force_simple     # multiple choice

lmms-eval has two interfaces. The chat interface (the default) gives the positions of images in the text, and supports
only generation; the simple interface (`--force_simple`) puts images before the question, and supports multiple choice.
Model arguments: `pretrained` (a workdir, its model.safetensors, or a converted model), `vae`, `tokenizer`, `dtype`,
`frames` (the largest number of frames taken of a video, 1 + 4k; default 17), `template` ('chat' or 'plain'; default:
the model's own), `max_new_tokens` (for tasks that set none; default 128).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_eval.api.instance import (  # pyright: ignore[reportMissingImports]
    GenerationResult,
    Instance,
)
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]
from tqdm import tqdm

from tuna_jax.data.text.messages import IMAGE_TAG, MEDIA_TYPES, count_tags, escape
from tuna_jax.inference.conversation import Conversation
from tuna_jax.inference.generation_config import DecodingOptions
from tuna_jax.inference.media_inputs import of_kind
from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.pipeline import Tuna
from tuna_jax.inference.scoring import likelihoods

_CHUNK = 256  # Requests whose images are in memory at the same time.


def manifest() -> ModelManifest:
    """The models of this package, for the entry point `lmms_eval.models`."""
    return ModelManifest(
        model_id="tuna",
        simple_class_path="tuna_jax.integrations.lmms_eval.TunaSimple",
        chat_class_path="tuna_jax.integrations.lmms_eval.TunaChat",
        aliases=("tuna_jax",),
    )


class TunaSimple(lmms):
    """The simple interface: images or a video, then the question; generation and log-likelihood."""

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
        del device, max_batch_size  # JAX chooses the device; batches have a fixed size.
        if unknown:
            raise ValueError(f"unknown --model_args of tuna: {', '.join(unknown)}")
        if not pretrained:
            raise ValueError(
                "--model_args requires pretrained=PATH, a run's workdir or a converted model"
            )
        self._model = Tuna.load(
            pretrained, vae=vae or None, tokenizer=tokenizer or None, dtype=dtype
        )
        self._frames, self._template = int(frames), template or None
        self._max_new_tokens, self._batch_size = int(max_new_tokens), int(batch_size)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, truncated before the first of its stop strings."""
        return self._generate([self._prompt(*request.args) for request in requests])

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """The likelihood of each continuation, in lmms-eval's convention.

        The value of a choice is *minus* its log-likelihood: lmms-eval 0.7.3 takes the choice with the smallest value,
        because its own models return losses. A target that the task computes from the document gets the log-likelihood
        itself, as its interface documents. Both are wrapped because a bare pair of numbers would be read as text.
        """
        prompts, continuations, signs = [], [], []
        for request in requests:
            # For mutual information a choice has no document.
            context, continuation, *rest = request.args
            visuals = self._visuals(*rest) if rest else []
            if callable(continuation):
                _, document_id, task, split = rest
                signs.append(1.0)
                continuation = str(continuation(self.task_dict[task][split][document_id]))
            else:
                signs.append(-1.0)
            prompts.append((visuals, context))
            # The delimiter before a continuation is white space; in our templates an answer starts a line.
            continuations.append(continuation.strip())
        results = []
        for start in self._slices(len(requests)):
            chunk = slice(start, start + _CHUNK)
            scores = likelihoods(
                self._model,
                [self._conversation(*prompt) for prompt in prompts[chunk]],
                continuations[chunk],
                ended=False,
                template=self._template,
                batch_size=self._batch_size,
            )
            for row, (sign, value, greedy) in enumerate(
                zip(signs[chunk], scores.log_probability, scores.greedy, strict=True)
            ):
                if not math.isfinite(value):
                    raise NotFiniteError.of(f"log-likelihood for request {start + row}")
                results.append(GenerationResult(text=(sign * float(value), bool(greedy))))
        return results

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError("tuna does not support tasks of several rounds")

    def _prompt(
        self, context: str, options: Mapping[str, Any], *document: Any
    ) -> tuple[Callable[[], Conversation], Mapping[str, Any]]:
        """A function that loads a request's conversation, and the request's options."""
        return lambda: self._conversation(self._visuals(*document), context), options

    def _visuals(
        self, read: Callable[[Any], Any], document_id: int, task: str, split: str
    ) -> list[Any]:
        """The images or the video of a document."""
        return list(read(self.task_dict[task][split][document_id]) or [])

    def _conversation(self, visuals: Sequence[Any], text: str) -> Conversation:
        media = self._model.load_media([_media_input(item) for item in visuals], self._frames)
        # Tags that are not the places of the images are text, as every other character of a task.
        has_tags = count_tags(text) == len(media) > 0
        content = text if has_tags else f"{IMAGE_TAG}\n" * len(media) + escape(text)
        return Conversation(({"role": "user", "content": content},), tuple(media))

    def _generate(
        self, prompts: Sequence[tuple[Callable[[], Conversation], Mapping[str, Any]]]
    ) -> list[str]:
        """The answers to requests; those with the same options share batches."""
        groups: dict[str, list[int]] = {}
        for index, (_, options) in enumerate(prompts):
            groups.setdefault(json.dumps(dict(options), sort_keys=True), []).append(index)
        answers = [""] * len(prompts)
        for group in groups.values():
            decoding, stops = self._decoding(prompts[group[0]][1])
            for start in self._slices(len(group)):
                chunk = group[start : start + _CHUNK]
                # A sampled answer depends on its index among the requests.
                seeds = {"seed": [(0, index) for index in chunk]}
                replies = self._model.reply([prompts[i][0]() for i in chunk], **decoding, **seeds)
                for index, reply in zip(chunk, replies, strict=True):
                    ends = [reply.find(stop) for stop in stops if stop in reply]
                    answers[index] = reply[: min(ends)] if ends else reply
        return answers

    def _decoding(self, options: Mapping[str, Any]) -> tuple[DecodingOptions, list[str]]:
        """A task's options as `DecodingOptions`, and its stop strings."""
        temperature = float(options.get("temperature") or 0)
        if options.get("do_sample") is False:
            temperature = 0.0
        stops = options.get("until") or []
        decoding: DecodingOptions = {
            "max_new_tokens": int(options.get("max_new_tokens") or self._max_new_tokens),
            "temperature": temperature,
            "top_k": int(options.get("top_k") or 0),
            "top_p": float(options.get("top_p") or 1),
            "template": self._template,
            "batch_size": self._batch_size,
        }
        return decoding, [stops] if isinstance(stops, str) else [stop for stop in stops if stop]

    def _slices(self, count: int) -> Any:
        """The start of each chunk of `_CHUNK` requests, with a progress bar."""
        return tqdm(range(0, count, _CHUNK), desc="tuna", disable=count <= _CHUNK)


class TunaChat(TunaSimple):
    """The chat interface: messages with text, images and videos in any order."""

    is_simple = False

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """Not supported by lmms-eval's chat interface: raises NotImplementedError."""
        raise NotImplementedError("multiple choice by log-likelihood requires --force_simple")

    def _prompt(
        self, context: str, options: Any, *document: Any
    ) -> tuple[Callable[[], Conversation], Mapping[str, Any]]:
        # The arguments are (context, document -> messages, options, document's index, task, split).
        read, (options, document_id, task, split) = options, document
        return lambda: self._chat(read(self.task_dict[task][split][document_id])), options

    def _chat(self, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """The conversation of messages in the form of lmms-eval."""
        texts, media = [], []
        for message in messages:
            content = message["content"]
            parts: list[dict[str, str]] = []
            for part in (
                [{"type": "text", "text": content}] if isinstance(content, str) else content
            ):
                if part["type"] == "text":
                    parts.append({"type": "text", "text": part["text"]})
                elif part["type"] in MEDIA_TYPES:
                    media += of_kind([_media_input(part["url"])], part["type"])
                    parts.append({"type": part["type"]})
                else:
                    raise ValueError(f"tuna supports images and video, not {part['type']}")
            texts.append({"role": message["role"], "content": parts})
        return Conversation(tuple(texts), tuple(self._model.load_media(media, self._frames)))


def _media_input(item: Any) -> Any:
    """An image or file as `Tuna.load_media` takes it; lmms-eval may give a dict with its bytes, path or URL."""
    if isinstance(item, Mapping):
        if item.get("video"):
            return of_kind([item["video"]], "video")[0]
        return item.get("bytes") or item.get("url") or item.get("path")
    return item
