"""Commands teach their use, and name what is wrong with an argument."""

import subprocess
import sys
from pathlib import Path

import pytest

SWEEP = ["tuna_jax.evaluate", "--sweep=experiments/sweeps/emoji.py"]


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("tuna_jax.train", ["Examples", "--config=experiments/emoji/demo.py", "--workdir"]),
        ("tuna_jax.generate", ["Examples", "--prompt", "--question", "--guidance"]),
        ("tuna_jax.export", ["Examples", "--rows=1,4", "--platforms", "Tuna.load"]),
        ("tuna_jax.evaluate_benchmarks", ["Examples", "--check", "--shard", "geneval"]),
        ("tuna_jax.evaluate_images", ["Examples", "alignment", "--extractor", "CKNNA"]),
        ("tuna_jax.evaluate", ["Examples", "--workdir", "--drawings", "--sweep="]),
        ("tuna_jax.evaluate_vqa", ["Examples", "multiple_choice", "--tfds", "--fields"]),
        ("tuna_jax.benchmark", ["Examples", "data", "--workers"]),
        ("tuna_jax.encode_latents", ["Examples", "--manifest", "--process_count", "goes on"]),
        ("tuna_jax.convert", ["Examples", "verify", "--manifest", "from_torch", "inspect"]),
    ],
)
def test_help_teaches(module: str, words: list[str]) -> None:
    done = _run(module, "--help")
    for word in words:
        assert word in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tuna_jax.generate", "--model=nowhere", "--prompt=a cat"], "no trained model at nowhere"),
        (["tuna_jax.generate", "--model=nowhere"], "give --prompt= or --prompts=FILE"),
        (["tuna_jax.generate", "--model=m", "--image=p.png"], "--image and --question go together"),
        (["tuna_jax.evaluate", "--workdir=nowhere"], "no trained model at nowhere"),
        ([*SWEEP, "--workdir=nowhere", "--output={tmp}"], "no run at nowhere"),
        ([*SWEEP, "--workdir=w", "--sweep.bach=3"], "unknown config key sweep.bach; did you mean"),
        (
            [*SWEEP, "--workdir=w", "--output={tmp}", "--sweep.settings.guidance=()"],
            "values to try",
        ),
        (["tuna_jax.convert", "inspect", "nowhere"], "nowhere does not exist"),
        (["tuna_jax.convert", "verify"], "give either a golden set's folder DIR or --manifest"),
    ],
)
def test_a_wrong_argument_is_named(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = _run(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
