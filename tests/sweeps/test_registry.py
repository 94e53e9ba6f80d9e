"""The registry of tasks: lazy, complete, and free of the emoji demo until one of its tasks is used."""

import subprocess
import sys

import pytest

from tuna_jax.sweeps import registry
from tuna_jax.sweeps.task import Task


@pytest.mark.parametrize("kind", sorted(registry.TASKS))
def test_every_kind_resolves_to_a_function(kind):
    assert registry.task_function(kind).__name__ == kind


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("generate_single", "draw_single"),
        ("generate_clips", "draw_clips"),
        ("converse", "converse"),
    ],
)
def test_emoji_tasks_carry_their_attribution_and_their_stored_name(kind, stored):
    task = registry.make_task("any", {"kind": kind, "count": 2})
    assert task.kind == stored
    assert "Twemoji" in task.attribution


def test_attributions_are_listed_once():
    def task(text):
        return Task("t", 1, 1, {}, (), lambda *args: None, attribution=text)

    assert registry.attribution([task("A."), task(""), task("B."), task("A.")]) == "A. B."
    assert registry.attribution([task("")]) == ""


def test_sweeps_do_not_import_the_emoji_tasks():
    code = (
        "import sys; from tuna_jax.sweeps import registry, runner, online, report_page;"
        "registry.task_function('questions');"
        "print([name for name in sys.modules if name.startswith('tuna_jax.emoji.evaluation')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("unknown", {}, r"config\.tasks\.unknown.*generate_single"),
        ("mine", {"kind": "nothing"}, r"config\.tasks\.mine: 'nothing'"),
        ("generate_pairs", {"counts": 3}, r"config\.tasks\.generate_pairs.*counts"),
        ("generate_pairs", {"count": 0}, r"config\.tasks\.generate_pairs"),
    ],
)
def test_invalid_tasks_are_named(name, options, key):
    with pytest.raises(ValueError, match=key):
        registry.make_task(name, options)
