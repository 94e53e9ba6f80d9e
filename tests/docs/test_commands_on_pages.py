"""Every command on every page parses, the Python on the pages runs, and links lead somewhere."""

import os
import re
from pathlib import Path

import pytest

from tests.docs import commands
from tests.docs.commands import PAGES, ROOT, Command, WrongCommandError
from tuna_jax.cli.main import COMMANDS

ON_PAGES, IN_DOCSTRINGS = commands.on_pages(), commands.in_docstrings()
README_BYTES = 8192


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for name in ("JAX_PLATFORMS", "XLA_FLAGS"):  # `convert` sets defaults of them.
        monkeypatch.setenv(name, os.environ.get(name, ""))


@pytest.mark.parametrize("command", [*ON_PAGES, *IN_DOCSTRINGS], ids=str)
def test_a_command_parses(command: Command) -> None:
    commands.check(command.words)


def test_the_commands_are_found() -> None:
    """Every command is on a page, and in a docstring; so the extraction sees them."""
    for found in (ON_PAGES, IN_DOCSTRINGS):
        names = {one.words[1] for one in found if Path(one.words[0]).name == "tuna-jax"}
        assert names >= set(COMMANDS)
    launchers = {one.words[1] for one in ON_PAGES if one.words[1].startswith("launchers/")}
    assert launchers == {f"launchers/{name}" for name in commands.LAUNCHERS}
    words = {" ".join(one.words[:2]) for one in ON_PAGES}
    assert words >= {
        f"./launchers/local.sh {name}" for name in ("demo", "test", "check", "setup", "run")
    }


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("tuna-jax generate --model=m --promt=a", "--promt"),
        ("tuna-jax generate --model=m --prompt=a --question=b", "--task"),
        ("tuna-jax train --config=experiments/emoji/demo.py --workdir=r --config.stepz=3", "steps"),
        ("tuna-jax train --config=experiments/nowhere.py --workdir=r", "nowhere.py"),
        ("tuna-jax evaluate --workdir=r --drawings=3", "--images"),
        ("tuna-jax evaluate --workdir=r --sweep=experiments/sweeps/emoji.py --sweep.bach=3", "batch"),
        ("tuna-jax benchmark sample --rouns=3", "--rouns"),
        ("tuna-jax shine", "shine"),
        ("python -m tuna_jax.planning.golden_shardings --chek", "--chek"),
        ("python -m tuna_jax.train --workdir=r", "--config"),
        ("./launchers/local.sh demo --wokdir=r", "--wokdir"),
        ("./launchers/local.sh run tuna_jax.convert inspct model/", "inspct"),
        ("./launchers/local.sh test tests/nowhere.py", "tests/nowhere.py"),
        ("python launchers/local.py --procs=2 -- python -m tuna_jax.train --workdir=r", "--procs"),
        ("python launchers/slurm.py --name=a --nodes=2 -- python -m tuna_jax.train --workdir=/r", "--config"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(text: str, named: str) -> None:
    (command,) = commands.commands_of("page.md", 1, [text])
    with pytest.raises(WrongCommandError, match=named):
        commands.check(command.words)


def test_continued_lines_are_joined() -> None:
    lines = ["    tuna-jax plan --config=a.py \\", "        --stream=edit   # a comment", "text"]
    (command,) = commands.commands_of("page.md", 7, lines)
    assert command.words == ("tuna-jax", "plan", "--config=a.py", "--stream=edit")
    assert command.line == 8


def _python_blocks() -> list:
    blocks = []
    for page in PAGES:
        for language, first, lines in commands.code_blocks(page.read_text(encoding="utf-8")):
            if language == "python":
                name = f"{page.relative_to(ROOT)}:{first}"
                blocks.append(pytest.param("\n".join(lines), id=name))
    return blocks


@pytest.mark.parametrize("code", _python_blocks())
def test_the_python_on_a_page_runs(code: str, tiny_model: Path, any_words: None) -> None:
    """On a tiny model with the emoji world's words in place of the one that the page loads."""
    load = f'tuna_jax.Tuna.load("{tiny_model}", tokenizer="emoji")'
    names: dict = {}
    exec(re.sub(r'tuna_jax\.Tuna\.load\("[^"]*"\)', load, code), names)
    if "model" in names:
        assert names["images"].shape[-1] == 3
        assert names["edited"].shape == names["images"].shape
        assert names["clips"].ndim == 5


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= README_BYTES


def _slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_images_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(_slug, headings), target


def test_every_page_is_linked_from_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in text
