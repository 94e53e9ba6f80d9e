"""The bodies of requests. Field names are OpenAI's, and those of vLLM-Omni and SGLang where OpenAI has none.

A field that does not exist is an error, as is one of OpenAI's that this server cannot honour, except where it is given
its neutral value (`NEUTRAL`). Fields that do not change a result (`IGNORED`) are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuna_jax.inference import option_checks
from tuna_jax.serving import errors
from tuna_jax.utils import seeds
from tuna_jax.utils.text_files import check_text

IGNORED = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("moderation", "quality", "style", "background", "input_fidelity", "output_compression"),
}
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "repetition_penalty": (1, None),
    "logprobs": (False, None),
    "top_logprobs": (0, None),
    "logit_bias": ({}, None),
    "tools": ([], None),
    "tool_choice": ("none", None),
    "functions": ([], None),
    "response_format": ({"type": "text"}, None),
    "audio": (None,),
    "prediction": (None,),
    "parallel_tool_calls": (True, False, None),
    "mask": (None,),
    "mask_image": (None,),
    "input_reference": (None,),
}
"""Fields of OpenAI's that this server cannot honour: the values that ask for nothing."""

Text = Annotated[str, Field(max_length=200_000)]
Seed = Annotated[int, Field(ge=0, le=seeds.LARGEST)]
Guidance = Annotated[float, Field(ge=0, le=option_checks.LARGEST_GUIDANCE, allow_inf_nan=False)]
Shift = Annotated[float, Field(ge=option_checks.SMALLEST_SHIFT, le=option_checks.LARGEST_SHIFT)]
Format = Literal["png", "jpeg", "webp"]


class Body(BaseModel):
    """A body: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    """What a stream has besides the results.

    Attributes:
      include_usage: a last event with the numbers of tokens.
      include_progress: an event for each evaluation of the velocity (images).
    """

    include_usage: bool | None = None
    include_progress: bool | None = None
    include_obfuscation: bool | None = None


class Sampling(Body):
    """How images and clips are sampled; what is left out takes the model's default."""

    negative_prompt: Text | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=option_checks.LARGEST_STEPS)] | None = None
    guidance_scale: Guidance | None = None
    guidance_interval: Annotated[list[float], Field(min_length=2, max_length=2)] | None = None
    shift: Shift | None = None
    solver: Literal["euler", "heun"] | None = None
    seed: Seed | None = None


class ImageRequest(Sampling):
    """`POST /v1/images/generations`, and the texts of `/v1/images/edits`."""

    model: Text | None = None
    prompt: Text
    n: Annotated[int, Field(ge=1, le=1000)] | None = None
    size: Annotated[str, Field(max_length=40)] | None = None
    response_format: Literal["b64_json"] | None = None
    output_format: Format | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    stream_options: StreamOptions | None = None


class VideoRequest(Sampling):
    """`POST /v1/videos`."""

    model: Text | None = None
    prompt: Text
    size: Annotated[str, Field(max_length=40)] | None = None
    seconds: Annotated[float, Field(gt=0, le=3600)] | Annotated[str, Field(max_length=9)] | None = (
        None
    )
    num_frames: Annotated[int, Field(ge=1, le=option_checks.LARGEST_FRAMES)] | None = None
    fps: Annotated[float, Field(ge=0.1, le=120)] | None = None


class ImageUrl(Body):
    """Where an image is."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class VideoUrl(Body):
    """Where a video is."""

    url: str


class TextPart(Body):
    """A part of a message: text."""

    type: Literal["text"]
    text: Text


class ImagePart(Body):
    """A part of a message: an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class VideoPart(Body):
    """A part of a message: a video."""

    type: Literal["video_url"]
    video_url: VideoUrl


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(Body):
    """A message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=256)] | None = None
    name: str | None = None
    refusal: None = None


class ChatRequest(Sampling):
    """`POST /v1/chat/completions`."""

    model: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=512)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    stop: (
        Annotated[str, Field(max_length=256)]
        | Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=4)]
        | None
    ) = None
    n: Annotated[int, Field(ge=1, le=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[str], Field(max_length=4)] | None = None
    template: Literal["chat", "plain"] | None = None
    # Of images (`modalities`).
    size: Annotated[str, Field(max_length=40)] | None = None
    height: Annotated[int, Field(ge=1, le=option_checks.LARGEST_SIDE)] | None = None
    width: Annotated[int, Field(ge=1, le=option_checks.LARGEST_SIDE)] | None = None
    output_format: Format | None = None


def media_urls(body: ChatRequest) -> Iterator[tuple[str, str]]:
    """(field, URL) of all images and videos of a conversation."""
    for index, message in enumerate(body.messages):
        for number, part in enumerate(
            () if isinstance(message.content, str) else message.content or ()
        ):
            where = f"messages[{index}].content[{number}]"
            if isinstance(part, ImagePart):
                yield f"{where}.image_url.url", part.image_url.url
            elif isinstance(part, VideoPart):
                yield f"{where}.video_url.url", part.video_url.url


AnyBody = TypeVar("AnyBody", bound=Body)


def parse(schema: type[AnyBody], values: Any, *, from_form: bool = False) -> AnyBody:
    """A body from its plain values.

    Args:
      schema: what it is.
      values: parsed JSON, or the texts of a form.
      from_form: whether numbers are written as texts.

    Raises:
      ApiError: it is not as the schema says; the field is named.
    """
    if not isinstance(values, dict):
        raise errors.invalid(None, "the body must be a JSON object")
    values = {key: value for key, value in values.items() if key not in IGNORED}
    for name in [name for name in values if name in NEUTRAL and name not in schema.model_fields]:
        value = values.pop(name)
        if not any(type(value) is type(neutral) and value == neutral for neutral in NEUTRAL[name]):
            same = isinstance(value, float) and value in NEUTRAL[name]
            if not same:
                raise errors.invalid(
                    name, f"{name} is not supported by this server", "unsupported_parameter"
                )
    try:
        parsed = schema.model_validate(values, strict=not from_form)
    except ValidationError as error:
        raise errors.of_validation(error) from None
    for name in ("prompt", "negative_prompt"):
        unicode(name, getattr(parsed, name, None))
    return parsed


def unicode(name: str, text: str | None) -> None:
    """Checks that a text is Unicode: JSON can spell half of a surrogate pair, which no tokenizer takes."""
    if text is not None:
        try:
            check_text(text, name)
        except ValueError as error:
            raise errors.invalid(name, str(error), "invalid_value") from None
