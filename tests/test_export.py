"""The command `export`: from a model to programs that `generate` runs."""

import numpy as np
import pytest
from PIL import Image

from tuna_jax import export, generate
from tuna_jax.inference.generation import flow_sampler

pytestmark = pytest.mark.usefixtures("any_words")


def test_exported_programs_generate_without_tracing(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = [f"--model={tiny_model}", "--tokenizer=emoji"]
    flags = ["--size=32,32x48", "--steps=2", "--prompt=32", "--output=programs"]
    assert export.main([*model, *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("programs/draw_1_of_1x32x48_prompt_32_2_3_euler")
    flags = [*model, "--prompt=a dog", "--size=32x48", "--steps=2"]
    assert generate.main([*flags, "--output=traced"]) == 0
    monkeypatch.setattr(flow_sampler, "sample", None)
    assert generate.main([*flags, "--programs=programs", "--output=called"]) == 0
    pictures = [
        np.asarray(Image.open(f"{name}/prompt_0.png"), int) for name in ("traced", "called")
    ]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.parametrize(
    ("flags", "status", "words"),
    [
        (["--rows=0"], 2, "'0'"),
        (["--size=32by4"], 2, "'32by4'"),
        (["--size=40"], 1, "height 40"),
        (["--platforms=cpu,gpu"], 1, "platforms is"),
    ],
)
def test_errors_are_named(tiny_model, tmp_path, capsys, flags, status, words):
    arguments = [f"--model={tiny_model}", "--tokenizer=emoji", f"--output={tmp_path}", *flags]
    try:
        exit_status = export.main(arguments)
    except SystemExit as stopped:
        exit_status = stopped.code
    assert exit_status == status
    assert words in capsys.readouterr().err
