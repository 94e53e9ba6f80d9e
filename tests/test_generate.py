"""The command `generate`: each task from files to files, and what it refuses."""

import json
import warnings

import numpy as np
import pytest
from PIL import Image

import tuna_jax
from tuna_jax import generate
from tuna_jax.data.media.video import load_video
from tuna_jax.inference import batching

DOG, CAT = "a dog on a blue background", "a cat on a pink background"
QUICK = ["--steps=2", "--size=32"]


@pytest.fixture(autouse=True)
def _words_outside_the_compact_vocabulary():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture
def run(tiny_model, tmp_path, monkeypatch):
    """Runs the command in an empty folder, with two images in it."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)).save(name)

    def call(*arguments: str) -> int:
        return generate.main([f"--model={tiny_model}", "--tokenizer=emoji", *arguments])

    return call


def _read(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_prompts_become_images_and_a_contact_sheet(run, tmp_path, capsys, tiny_model):
    (tmp_path / "more.txt").write_text(f"{CAT}\n\n")
    assert run(f"--prompt={DOG}", "--prompts=more.txt", "--seed=3", *QUICK) == 0
    images = [_read(f"pictures/prompt_{i}.png") for i in range(2)]
    expected = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji").generate_image(
        [DOG, CAT], seed=3, steps=2, size=(32, 32)
    )
    np.testing.assert_array_equal(images, expected)
    assert (tmp_path / "pictures/sheet.png").exists()
    assert f"prompt_1.png: {CAT}" in capsys.readouterr().out
    assert run(f"--prompt={DOG}", "--output=other", f"--negative={CAT}", "--seed=3", *QUICK) == 0
    assert (_read("other/prompt_0.png") != images[0]).any(), "the negative prompt changes it"
    flags = [f"--prompt={DOG}", "--guidance=5", "--guidance_interval=0.2,1", "--output=late"]
    assert run(*flags, *QUICK) == 0
    late = {"guidance": 5.0, "guidance_interval": (0.2, 1.0), "steps": 2, "size": (32, 32)}
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    np.testing.assert_array_equal(_read("late/prompt_0.png"), model.generate_image(DOG, **late)[0])


def test_large_images_are_decoded_in_tiles(run, monkeypatch):
    seen = []
    decode = batching.decode_checked
    monkeypatch.setattr(
        batching, "decode_checked", lambda *args: seen.append(args[4]) or decode(*args)
    )
    flags = [f"--prompt={DOG}", "--steps=1", "--size=32x736"]
    assert run(*flags) == 0
    assert run(*flags, "--tile_above=20000", "--output=tiles") == 0
    assert seen == [1024 * 1024, 20000]
    whole, tiles = (_read(f"{name}/prompt_0.png").astype(int) for name in ("pictures", "tiles"))
    assert (whole != tiles).any() and np.abs(whole - tiles).mean() < 4


def test_lines_of_json_have_their_own_seed_and_negative(run, tmp_path):
    lines = [
        {"prompt": DOG},
        {"prompt": DOG, "seed": 7},
        {"prompt": DOG, "negative": CAT, "seed": 7},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("--prompts=p.jsonl", *QUICK) == 0
    first, second, third = (_read(f"pictures/prompt_{i}.png").astype(int) for i in range(3))
    assert run(f"--prompt={DOG}", "--seed=7", "--output=single", *QUICK) == 0
    assert np.abs(_read("single/prompt_0.png") - second).max() <= 1
    assert np.abs(first - second).max() > 1
    assert np.abs(third - second).max() > 1


def test_edits_start_from_their_images(run, tmp_path):
    lines = [{"prompt": DOG, "image": name, "seed": 1} for name in ("a.png", "b.png")]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("--task=edit", "--prompts=e.jsonl", *QUICK) == 0
    first, second = (_read(f"pictures/edit_{i}.png").astype(int) for i in range(2))
    assert first.shape == (32, 32, 3)
    assert np.abs(first - second).max() > 1
    # A single edit, whose task follows from its flags.
    assert run("--image=b.png", f"--prompt={DOG}", "--seed=1", "--output=single", *QUICK) == 0
    assert np.abs(_read("single/edit_0.png") - second).max() <= 1


def test_several_images_become_one_and_an_image_a_clip(run, tmp_path):
    pytest.importorskip("av")
    lines = [{"prompt": DOG, "image": names, "seed": 1} for names in (["a.png", "b.png"], "b.png")]
    (tmp_path / "e.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("--task=edit", "--prompts=e.jsonl", *QUICK) == 0
    both, single = (_read(f"pictures/edit_{i}.png").astype(int) for i in range(2))
    flags = [f"--prompt={DOG}", "--seed=1", *QUICK]
    assert run("--image=a.png", "--image=b.png", *flags, "--output=two") == 0
    assert np.abs(_read("two/edit_0.png") - both).max() <= 1
    assert np.abs(both - single).max() > 1
    guided = "--image_guidance=3"
    assert run("--image=a.png", "--image=b.png", guided, *flags, "--output=guided") == 0
    assert np.abs(_read("guided/edit_0.png") - both).max() > 1
    # Frames make a clip of the image; in a file, clips with and without a first frame.
    lines = [{"prompt": DOG, "image": "a.png", "seed": 1}, {"prompt": DOG, "seed": 1}]
    (tmp_path / "v.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run("--image=a.png", "--frames=5", *flags) == 0
    assert run("--task=t2v", "--prompts=v.jsonl", "--frames=5", "--output=many", *QUICK) == 0
    clips = [
        load_video(tmp_path / name, (32, 32), 17).astype(int)
        for name in ("videos/video_0.mp4", "many/video_0.mp4", "many/video_1.mp4")
    ]
    assert np.abs(clips[0] - clips[1]).max() <= 1 and np.abs(clips[1] - clips[2]).max() > 1


@pytest.mark.slow
def test_text_becomes_video_and_video_becomes_text(run, tmp_path, capsys):
    pytest.importorskip("av")
    assert run("--task=t2v", f"--prompt={DOG}", "--frames=5", "--steps=1", "--size=32x48") == 0
    clip = load_video(tmp_path / "videos/video_0.mp4", (32, 48), 17)
    assert clip.shape == (5, 32, 48, 3)
    capsys.readouterr()
    few = "--max_new_tokens=3"
    assert run("--video=videos/video_0.mp4", "--question=what happens?", "--frames=5", few) == 0
    (line,) = (tmp_path / "answers/answers.jsonl").read_text().splitlines()
    assert json.loads(line)["answer"] == capsys.readouterr().out.removesuffix("\n")


def test_questions_about_several_images(run, tmp_path, capsys, tiny_model):
    flags = ["--image=a.png", "--image=b.png", "--question=what is this?", "--question=why?"]
    assert run(*flags, "--max_new_tokens=4", "--output=out") == 0
    answers = [json.loads(x) for x in (tmp_path / "out/answers.jsonl").read_text().splitlines()]
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    for line, question in zip(answers, ["what is this?", "why?"], strict=True):
        assert line["media"] == ["a.png", "b.png"]
        expected = model.answer(["a.png", "b.png"], question, max_new_tokens=4)
        assert line["answer"] == expected
    assert capsys.readouterr().out == "".join(f"{line['answer']}\n" for line in answers)


def test_a_chat_continues(run, tmp_path, tiny_model):
    few = "--max_new_tokens=3"
    flags = ["--image=a.png", "--question=what is this?", "--question=why?"]
    assert run("--task=chat", *flags, few) == 0
    first = json.loads((tmp_path / "answers/conversation.json").read_text())
    assert [m["role"] for m in first["messages"]] == ["user", "assistant"] * 2
    assert first["messages"][0]["content"] == "<image>\nwhat is this?"
    history = "--history=answers/conversation.json"
    assert run("--task=chat", history, "--question=and then?", few, "--output=later") == 0
    later = json.loads((tmp_path / "later/conversation.json").read_text())
    assert later["media"] == ["a.png"]
    assert later["messages"][:4] == first["messages"]
    model = tuna_jax.Tuna.load(tiny_model, tokenizer="emoji")
    assert later["messages"][5]["content"] == model.chat(
        later["messages"][:5], "a.png", max_new_tokens=3
    )
    # The same as a line of a file.
    line = {"messages": later["messages"][:5], "image": "a.png"}
    (tmp_path / "c.jsonl").write_text(json.dumps(line))
    assert run("--task=chat", "--prompts=c.jsonl", few, "--output=lines") == 0
    (answered,) = (tmp_path / "lines/answers.jsonl").read_text().splitlines()
    assert json.loads(answered)["answer"] == later["messages"][5]["content"]


def test_streamed_answers_are_the_answers(run, tmp_path, capsys, monkeypatch):
    flags = ["--image=a.png", "--question=what is this?", "--question=why?", "--temperature=1"]
    flags += ["--max_new_tokens=12"]
    written = []
    monkeypatch.setattr(generate, "_print_part", written.append)
    for task, name in (("understand", "answers.jsonl"), ("chat", "conversation.json")):
        written.clear()
        assert run(f"--task={task}", *flags, "--output=whole") == 0
        assert not written, "no terminal"
        printed = capsys.readouterr().out
        assert run(f"--task={task}", *flags, "--stream", "--output=parts") == 0
        assert not capsys.readouterr().out
        assert len(written) > 4 and "".join(written) == printed
        whole, parts = ((tmp_path / folder / name).read_text() for folder in ("whole", "parts"))
        assert parts == whole


@pytest.mark.parametrize(
    ("flags", "streams"),
    [([], True), (["--no-stream"], False), (["--task=chat", "--question=why?"], True)],
)
def test_a_terminal_gets_words_as_they_come(run, monkeypatch, flags, streams):
    written = []
    monkeypatch.setattr(generate, "_print_part", written.append)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run("--image=a.png", "--question=what is this?", "--max_new_tokens=12", *flags) == 0
    assert bool(written) == streams
    written.clear()
    both = ["--question=what is this?", "--question=why?"]
    assert run("--image=a.png", *both, "--max_new_tokens=2") == 0
    assert not written, "several questions are answered as one batch"


def test_text_only_is_a_chat(run, tmp_path):
    assert run("--question=hello", "--max_new_tokens=2", "--temperature=0.8", "--top_k=5") == 0
    assert json.loads((tmp_path / "answers/conversation.json").read_text())["media"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task=draw", "--prompt=a"], "invalid choice: 'draw'"),
        ([], "give --prompt= or --prompts=FILE"),
        (["--image=a.png"], "--image and --question go together"),
        (["--prompt=a", "--question=b"], "choose with --task="),
        (["--task=edit", "--prompt=a"], "give each with --image=FILE"),
        (["--task=t2v", "--prompt=a", "--image=a.png", "--image=b.png"], "one first frame"),
        (["--prompt=a", "--image_guidance=2"], "--image_guidance has no effect with --task=t2i"),
        (["--task=t2v", "--prompt=a", "--image_guidance=2"], "give --image=FILE"),
        (["--task=edit", "--image=a.png"], "--task=edit requires --prompt="),
        (["--task=understand", "--question=a"], "--task=understand requires --image=FILE"),
        (["--task=t2i", "--prompt=a", "--frames=5"], "--frames has no effect with --task=t2i"),
        (["--question=a", "--size=32"], "--size has no effect with --task=chat"),
        (["--prompt=a", "--size=32by4"], "'32by4'"),
        (["--prompt=a", "--guidance_interval=early"], "'early'"),
        (["--prompt=a", "--guidance_interval=0.5"], "'0.5'"),
        (["--question=a", "--guidance_interval=0,1"], "has no effect with --task=chat"),
        (["--prompt=a", "--stream"], "--stream has no effect with --task=t2i"),
        (["--prompt=a", "--batch_size=0"], "at least 1"),
        (["--image=a.png", "--video=b.mp4", "--question=a"], "--image and --video"),
    ],
)
def test_flags_that_do_not_fit_are_named(run, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt=a", "--size=40x32"], "height 40"),
        (["--prompt=a", "--guidance_interval=0.9,0.5"], "guidance_interval is (0.9, 0.5)"),
        (["--task=t2v", "--prompt=a", "--frames=4"], "4 frames is not 1 + 4k"),
        (["--prompts=none.txt"], "no file of requests at none.txt"),
        (["--prompts=bad.jsonl"], "bad.jsonl:2: not JSON"),
        (["--task=edit", "--prompts=edit.jsonl"], "the edit 'a'"),
        (["--image=none.png", "--question=a"], "none.png"),
        (["--image=bad.jsonl", "--question=a"], "bad.jsonl"),
        (["--task=chat", "--history=bad.jsonl", "--question=a"], "bad.jsonl"),
        (["--task=understand", "--prompts=ask.jsonl", "--video=c.mp4"], "c.mp4"),
    ],
)
def test_requests_that_fail_are_named(run, tmp_path, capsys, arguments, words):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (tmp_path / "edit.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "ask.jsonl").write_text('{"question": "a"}\n')
    assert run(*arguments) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and words in printed
    assert "Traceback" not in printed
