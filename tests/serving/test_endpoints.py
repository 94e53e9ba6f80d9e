"""OpenAI's client against a real server: every endpoint, and each result that of the same request by itself."""

import concurrent.futures
import time

import httpcore
import httpx
import numpy as np
import openai
import pytest

from tests.fixtures.random_images import random_image
from tests.serving.conftest import data_url, pixels, png
from tuna_jax.data.media.video import load_video, write_video
from tuna_jax.inference.conversation import Conversation
from tuna_jax.serving.remote import Remote

pytestmark = pytest.mark.usefixtures("any_words")
QUESTION = "what is this?"


def _say(text, *media):
    return {"role": "user", "content": [*media, {"type": "text", "text": text}]}


def _image(seed=0):
    return {"type": "image_url", "image_url": {"url": data_url(png(seed))}}


def _parts(text, images=0):
    return [*[{"type": "image"}] * images, {"type": "text", "text": text}]


@pytest.fixture(scope="module")
def separate(tuna):
    """The model by itself, computed before the server counts what is compiled: (name) -> result."""
    image = random_image(0)[None]
    user = {"role": "user", "content": _parts(QUESTION)}
    system = {"role": "system", "content": _parts("be short")}
    seen = {"role": "user", "content": _parts(QUESTION, 1)}
    answer = {"role": "assistant", "content": _parts("a dog")}
    two = {"role": "user", "content": _parts("what differs?", 2)}
    return {
        "text": tuna.reply([Conversation((user,))], max_new_tokens=12)[0],
        "sampled": tuna.reply(
            [Conversation((user,))] * 3, max_new_tokens=12, temperature=1.0, top_p=0.9, seed=7
        ),
        "image": tuna.reply([Conversation((seen,), (image,))], max_new_tokens=8)[0],
        "two": tuna.reply([Conversation((two,), (image, random_image(1)[None]))], max_new_tokens=8)[
            0
        ],
        "turns": tuna.reply(
            [Conversation((system, seen, answer, user), (image,))], max_new_tokens=8
        )[0],
        "generated": tuna.generate_image(["a red apple"] * 2, seed=3, steps=4, guidance=2.0),
        "negative": tuna.generate_image(
            ["a red apple"], seed=2**40, steps=2, negative="a dog", solver="heun", shift=1.0
        ),
        "unguided": tuna.generate_image(["a red apple"], seed=3, steps=3, guidance=1.0),
        "edited": tuna.edit_image(random_image(0), ["make it blue"], seed=5, steps=3),
        "clip": tuna.generate_video(["a cat grows"], seed=1, steps=3, frames=5),
    }


@pytest.fixture(scope="module")
def running(separate, running):
    """The server, started after `separate` was computed in this process."""
    del separate
    running.server.metrics.compiles = 0
    return running


def _chat(client, *messages, **options):
    return client.chat.completions.create(model="tuna", messages=list(messages), **options)


def _close(picture, wanted):
    """Latents agree to 1e-5; so pixels, which are rounded down, agree to 1."""
    assert picture.shape == wanted.shape
    assert np.abs(picture.astype(int) - wanted.astype(int)).max() <= 1


def test_the_model_and_what_is_served(client, running):
    (model,) = client.models.list().data
    assert model.id == "tuna" and client.models.retrieve("tuna").id == "tuna"
    extra = model.model_extra
    assert extra["tasks"] == ["chat", "image", "edit", "video"]
    assert extra["sizes"] == ["64x64"] and extra["num_frames"] == [5]
    assert httpx.get(f"{running.url}/health").json() == {"status": "ready"}


def test_an_answer(client, separate):
    reply = _chat(client, {"role": "user", "content": QUESTION}, max_completion_tokens=12)
    (choice,) = reply.choices
    assert choice.message.content == separate["text"]
    assert choice.finish_reason in ("stop", "length")
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply.usage.completion_tokens == 12 or choice.finish_reason == "stop"


def test_an_answer_about_an_image_at_an_address(client, separate, running, monkeypatch):
    async def resolve(host, port):
        return ["93.184.215.14"]

    network = httpcore.AsyncMockBackend([b"HTTP/1.1 200 OK\r\n\r\n", png()])
    fetcher = Remote(["images.example.com"], resolve=resolve, network=network)
    monkeypatch.setattr(running.server, "remote", fetcher)
    image = {"type": "image_url", "image_url": {"url": "http://images.example.com/a.png"}}
    reply = _chat(client, _say(QUESTION, image), max_completion_tokens=8)
    assert reply.choices[0].message.content == separate["image"]


def test_an_answer_in_parts_is_the_answer(client, separate):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(_chat(client, _say(QUESTION), max_completion_tokens=12, **options))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == separate["text"]
    assert chunks[-2].choices[0].finish_reason and chunks[-1].usage.completion_tokens > 0


def test_sampled_choices_are_rows_of_a_call_with_the_seed(client, separate):
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "n": 3, "max_tokens": 12}
    reply = _chat(client, _say(QUESTION), **options)
    assert [choice.message.content for choice in reply.choices] == separate["sampled"]
    assert len(set(separate["sampled"])) == 3


def test_answers_about_images_and_several_turns(client, separate):
    def reply(*messages):
        return _chat(client, *messages, max_completion_tokens=8).choices[0].message.content

    assert reply(_say(QUESTION, _image())) == separate["image"]
    assert reply(_say("what differs?", _image(0), _image(1))) == separate["two"]
    turns = [
        {"role": "developer", "content": "be short"},
        _say(QUESTION, _image()),
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": QUESTION},
    ]
    assert reply(*turns) == separate["turns"]
    # The text <image> is text, and an image of the assistant's goes before the next question.
    assert reply({"role": "user", "content": "<image> what?"})
    made = {"role": "assistant", "content": [_image()]}
    assert reply(made, _say(QUESTION)) == separate["image"]


def test_an_answer_about_a_video(client, tuna, tmp_path, running):
    clip = np.stack([random_image(seed) for seed in range(9)])
    file = write_video(tmp_path / "clip.mp4", clip)
    url = data_url(file.read_bytes(), "video/mp4")
    part = {"type": "video_url", "video_url": {"url": url}}
    reply = _chat(client, _say("what happens?", part), max_completion_tokens=8)
    frames = load_video(file, (64, 64), 5)
    message = {"role": "user", "content": [{"type": "video"}, *_parts("what happens?")]}
    before = running.server.metrics.compiles
    wanted = tuna.reply([Conversation((message,), (frames,))], max_new_tokens=8)[0]
    running.server.metrics.compiles = before  # Those of this line.
    assert reply.choices[0].message.content == wanted


def test_an_answer_ends_at_a_stop_string(client, separate):
    text = separate["sampled"][0]
    stop = text[3:5]
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "stop": [stop, "zzz"]}
    reply = _chat(client, _say(QUESTION), max_completion_tokens=12, **options)
    assert reply.choices[0].message.content == text[: text.index(stop)]
    assert reply.choices[0].finish_reason == "stop"
    chunks = _chat(client, _say(QUESTION), max_completion_tokens=12, stream=True, **options)
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == text[: text.index(stop)]


def test_generated_images(client, separate):
    extra = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
    made = client.images.generate(
        model="tuna", prompt="a red apple", n=2, size="64x64", extra_body=extra
    )
    for item, wanted in zip(made.data, separate["generated"], strict=True):
        _close(pixels(item.b64_json), wanted)
    extra = {"seed": 2**40, "num_inference_steps": 2, "negative_prompt": "a dog"}
    extra |= {"solver": "heun", "shift": 1.0}
    made = client.images.generate(model="tuna", prompt="a red apple", extra_body=extra)
    _close(pixels(made.data[0].b64_json), separate["negative"][0])
    extra = {"seed": 3, "num_inference_steps": 3, "guidance_scale": 1.0}
    made = client.images.generate(model="tuna", prompt="a red apple", extra_body=extra)
    _close(pixels(made.data[0].b64_json), separate["unguided"][0])


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats(client, kind):
    made = client.images.generate(
        prompt="a dog", output_format=kind, extra_body={"num_inference_steps": 1}
    )
    assert made.output_format == kind and pixels(made.data[0].b64_json).shape == (64, 64, 3)


def test_partial_images_and_progress(client, separate):
    extra = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
    extra["stream_options"] = {"include_progress": True}
    events = list(
        client.images.generate(
            prompt="a red apple", stream=True, partial_images=2, extra_body=extra
        )
    )
    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds.count("progress") == 4 and kinds.count("partial_image") == 2
    assert kinds[-1] == "completed"
    _close(pixels(events[-1].b64_json), separate["generated"][0])
    partial = [event for event in events if event.type.endswith("partial_image")]
    assert [event.partial_image_index for event in partial] == [0, 1]
    assert np.abs(pixels(partial[0].b64_json) - separate["generated"][0].astype(int)).max() > 1


def test_an_edited_image(client, separate):
    extra = {"seed": 5, "num_inference_steps": 3}
    made = client.images.edit(
        model="tuna", image=("a.png", png(), "image/png"), prompt="make it blue", extra_body=extra
    )
    _close(pixels(made.data[0].b64_json), separate["edited"][0])


def test_images_in_a_chat(client, separate):
    extra = {"num_inference_steps": 4, "guidance_scale": 2.0}
    reply = _chat(
        client, _say("a red apple"), seed=3, extra_body={**extra, "modalities": ["image"]}
    )
    (part,) = reply.choices[0].message.content
    _close(pixels(part["image_url"]["url"]), separate["generated"][0])
    extra = {"num_inference_steps": 3, "modalities": ["image"]}
    reply = _chat(client, _say("make it blue", _image()), seed=5, extra_body=extra)
    _close(pixels(reply.choices[0].message.content[0]["image_url"]["url"]), separate["edited"][0])


def _finished(client, video):
    end = time.monotonic() + 60
    while (video := client.videos.retrieve(video.id)).status not in ("completed", "failed"):
        assert time.monotonic() < end
        time.sleep(0.05)
    return video


def test_a_video_job(client, separate, tmp_path):
    extra = {"seed": 1, "num_inference_steps": 3}
    video = client.videos.create(prompt="a cat grows", size="64x64", extra_body=extra)
    assert video.status in ("queued", "in_progress")
    video = _finished(client, video)
    assert video.status == "completed" and video.progress == 100
    content = client.videos.download_content(video.id).read()
    wanted = write_video(tmp_path / "wanted.mp4", separate["clip"][0])
    made = tmp_path / "made.mp4"
    made.write_bytes(content)
    # H.264 makes more of a difference of 1; another clip differs by dozens.
    frames, wanted = (load_video(file, (64, 64), 5).astype(int) for file in (made, wanted))
    assert np.abs(frames - wanted).mean() < 2
    assert [item.id for item in client.videos.list().data][0] == video.id
    assert client.videos.delete(video.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_ended_jobs_are_forgotten_and_running_ones_are_deleted(client):
    videos = [
        _finished(client, client.videos.create(prompt="a", extra_body={"num_inference_steps": 1}))
        for _ in range(4)
    ]
    listed = [item.id for item in client.videos.list(order="asc", limit=2).data]
    assert listed == [video.id for video in videos[1:3]]
    long = client.videos.create(prompt="a", extra_body={"num_inference_steps": 200})
    assert client.videos.delete(long.id).deleted


@pytest.mark.parametrize(
    ("call", "status", "param", "code"),
    [
        (lambda c: _chat(c, _say("a"), max_tokens=65), 400, "max_tokens", "context_length_exceeded"),
        (lambda c: _chat(c, _say("a" * 2000)), 400, "messages", "context_length_exceeded"),
        (lambda c: _chat(c, _say("a"), temperature=3), 400, "temperature", "invalid_value"),
        (lambda c: _chat(c, _say("a"), n=11), 400, "n", "invalid_value"),
        (lambda c: _chat(c, _say("a"), logprobs=True), 400, "logprobs", "unsupported_parameter"),
        (lambda c: _chat(c, _say("a"), extra_body={"promt": 1}), 400, "promt", "unknown_parameter"),
        (lambda c: _chat(c, {"role": "user", "content": []}, {"role": "tool", "content": "a"}),
         400, "messages[1].role", "invalid_value"),
        (lambda c: _chat(c, {"role": "assistant", "content": "a"}), 400, "messages", "invalid_value"),
        (lambda c: _chat(c, _say("a", *[_image()] * 3)), 400, "messages", "too_many_media"),
        (lambda c: _chat(c, _say("a", {"type": "image_url", "image_url": {"url": "http://10.0.0.1/"}})),
         400, "messages[0].content[0].image_url.url", "unsupported_url"),
        (lambda c: _chat(c, _say("a", {"type": "image_url", "image_url": {"url": data_url(b"no")}})),
         400, "messages[0].content[0].image_url.url", "invalid_image"),
        (lambda c: c.images.generate(prompt="a", size="128x64"), 400, "size", "unsupported_size"),
        (lambda c: c.images.generate(prompt="a" * 999), 400, "prompt", "context_length_exceeded"),
        (lambda c: c.images.generate(prompt="a", response_format="url"), 400, "response_format",
         "invalid_value"),
        (lambda c: c.images.generate(prompt="a", extra_body={"num_inference_steps": 500}), 400,
         "num_inference_steps", "too_many_steps"),
        (lambda c: c.images.edit(prompt="a", image=[("a.png", png()), ("b.png", png())]), 400,
         "image", "too_many_media"),
        (lambda c: c.images.edit(prompt="a", image=("a.png", png()), mask=("b.png", png())), 400,
         "mask", "unsupported_parameter"),
        (lambda c: c.videos.create(prompt="a", seconds="8"), 400, "seconds", "unsupported_size"),
        (lambda c: c.videos.retrieve("video_none"), 404, "video_id", "not_found"),
        (lambda c: c.chat.completions.create(model="gpt", messages=[_say("a")]), 404, "model",
         "model_not_found"),
    ],
)  # fmt: skip
def test_an_error_names_the_field(client, call, status, param, code):
    with pytest.raises(openai.APIStatusError) as raised:
        call(client)
    error = raised.value
    assert (error.status_code, error.param, error.code) == (status, param, code)
    assert error.body["message"]


def test_many_at_once_are_each_as_alone(client, separate, running):
    """More than there are slots, of all kinds, mixed: continuous batching changes no result."""

    def answer(i):
        options = {"temperature": 1.0, "top_p": 0.9, "seed": 7, "n": 3, "max_tokens": 12}
        reply = _chat(client, _say(QUESTION), **options)
        return [choice.message.content for choice in reply.choices] == separate["sampled"]

    def about_image(i):
        reply = _chat(client, _say(QUESTION, _image()), max_completion_tokens=8)
        return reply.choices[0].message.content == separate["image"]

    def generated(i):
        extra = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 2.0}
        made = client.images.generate(prompt="a red apple", n=2, extra_body=extra)
        for item, wanted in zip(made.data, separate["generated"], strict=True):
            _close(pixels(item.b64_json), wanted)
        return True

    def edited(i):
        extra = {"seed": 5, "num_inference_steps": 3}
        made = client.images.edit(prompt="make it blue", image=("a", png()), extra_body=extra)
        _close(pixels(made.data[0].b64_json), separate["edited"][0])
        return True

    calls = [answer, about_image, generated, edited] * 6
    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        assert all(threads.map(lambda call: call(0), calls))
    metrics = httpx.get(f"{running.url}/metrics").text
    batches = {
        line.split()[0]: float(line.split()[1])
        for line in metrics.split("\n")
        if line.startswith("tuna_batch_rows_") and "bucket" not in line
    }
    for kind in ("decode", "image"):
        rows = batches[f'tuna_batch_rows_sum{{kind="{kind}"}}']
        assert rows > batches[f'tuna_batch_rows_count{{kind="{kind}"}}']  # They shared calls.


def test_a_long_clip_does_not_hold_up_an_answer(client, running):
    long = client.videos.create(prompt="a", extra_body={"num_inference_steps": 200})
    while client.videos.retrieve(long.id).status == "queued":
        time.sleep(0.01)
    _chat(client, _say(QUESTION), max_completion_tokens=12)
    progress = client.videos.retrieve(long.id)
    assert progress.status == "in_progress" and progress.progress < 90
    client.videos.delete(long.id)
    end = time.monotonic() + 10
    while not running.server.scheduler.idle:
        assert time.monotonic() < end
        time.sleep(0.02)
