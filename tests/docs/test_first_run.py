"""The commands of docs/data.md from a folder of pictures to a run, each run on tiny data with a tiny model."""

import shlex

import pytest

from tests.docs.commands import ROOT, commands_of
from tuna_jax.cli.main import main
from tuna_jax.training.metrics import read

HEADING = "## From a folder of pictures to a run"
EXPERIMENT = "experiments/tuna/tuna_1p5b_stage1.py"
# The page's experiment with the same streams, for a model and pictures that a test can afford.
TINY = f"""
import runpy

def get_config(arg=""):
    config = runpy.run_path({str(ROOT / EXPERIMENT)!r})["get_config"]()
    config.model = {{"preset": "emoji", "representation": {{"layers": 1}}, "language": {{"layers": 1}},
                    "flow_head": {{"layers": 1}}}}
    config.vae = config.init_from = ""
    config.steps, config.log_every, config.optimizer.warmup = 2, 1, 1
    config.data.vocabulary, config.mesh.fsdp, config.mesh.data = "emoji", 1, 1
    for stream in config.data.streams.values():
        stream.sizes, stream.lengths, stream.rows = ("32x32",), (160,), 4
    return config
"""


def commands():
    """The words of each command of the section."""
    lines = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("\n")
    section = lines[lines.index(HEADING) + 1 :]
    section = section[: next(i for i, line in enumerate(section) if line.startswith("## "))]
    code = [line for line in section if line.startswith("    ")]
    return [list(command.words[1:]) for command in commands_of("docs/data.md", 1, code)]


@pytest.mark.filterwarnings("ignore:.*is not in the compact vocabulary")
def test_five_commands_lead_from_a_folder_of_pictures_to_a_run(
    module_files, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        path = module_files.root / module_files.image(f"pictures/{i}.jpg", 40, 48, shade=30 * i)
        path.with_suffix(".txt").write_text(f"a picture with number {i}\n")
    (tmp_path / "pictures").symlink_to(module_files.root / "pictures")
    (tmp_path / "tiny.py").write_text(TINY)
    given = commands()
    assert [words[:2] for words in given] == [
        *(["data", name] for name in ("list", "inspect", "convert", "scan")),
        ["train", f"--config={EXPERIMENT}"],
    ]
    for words in given:
        words = [word.replace(EXPERIMENT, "tiny.py") for word in words]
        assert main(words) == 0, shlex.join(words) + capsys.readouterr().err
    assert "6 pictures" in capsys.readouterr().out
    assert (tmp_path / "data" / "captions.html").is_file()
    records = tmp_path / "data" / "captions_records"
    assert len(list((records / ".tuna_jax").glob("scan-*.safetensors"))) == 2, "one per stream"
    assert [line["step"] for line in read(tmp_path / "runs" / "stage1" / "metrics.jsonl")][-1] == 2
