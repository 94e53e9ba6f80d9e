"""Old names that users may have are read as today's, with one line of warning."""

import subprocess
import sys
import warnings

import pytest

from tuna_jax.utils import old_names


def quiet(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return function(*arguments, **options)


def test_kinds_have_todays_names():
    with pytest.warns(FutureWarning, match="'tuna'.*'emoji'"):
        assert old_names.experiment({"kind": "tuna"})["kind"] == "emoji"
    with pytest.warns(FutureWarning, match="'mixture'.*'multitask'"):
        assert old_names.experiment({"kind": "mixture"})["kind"] == "multitask"


@pytest.mark.parametrize(
    "renamed", old_names.CONFIG_KEYS, ids=lambda renamed: f"{renamed.kinds}{renamed.old}"
)
def test_every_old_key_becomes_the_new_one(renamed):
    kind = renamed.kinds[0] if renamed.kinds else "emoji"
    values = {"kind": kind}
    *folder, key = renamed.old.split(".")
    section = values
    for name in folder:
        section = section.setdefault(name, {})
    section[key] = 16
    before = str(values)
    with pytest.warns(FutureWarning, match=renamed.old.replace(".", r"\.")):
        translated = old_names.experiment(values)
    assert str(values) == before, "the user's mapping is not changed"
    for name in renamed.new.split("."):
        translated = translated[name]
    assert translated == (15 if "points" in renamed.old else 16)


def test_points_become_one_step_less_everywhere():
    values = {
        "kind": "emoji",
        "samples": {"points": 16},
        "evaluate": {"settings": {"points": (4, 8)}},
    }
    translated = quiet(old_names.experiment, values)
    assert translated["samples"] == {"steps": 15}
    assert translated["evaluate"]["settings"] == {"steps": (3, 7)}
    assert quiet(old_names.sweep, {"settings": {"points": (10,)}}) == {"settings": {"steps": (9,)}}
    assert quiet(old_names.sampling_options, {"points": 10, "seed": 1}) == {"steps": 9, "seed": 1}


def test_what_a_run_stored_is_translated_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = old_names.experiment({"kind": "tuna", "samples": {"points": 3}}, stored=True)
    assert values == {"kind": "emoji", "samples": {"steps": 2}}


def test_todays_names_pass_untouched():
    values = {"kind": "multitask", "init_from": "a", "samples": {"steps": 3}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert old_names.experiment(values) == values
        assert old_names.arguments(
            "train", ["--workdir=w", "--config=f.py", "--config.steps=3"]
        ) == [
            "--workdir=w",
            "--config=f.py",
            "--config.steps=3",
        ]


@pytest.mark.parametrize(
    ("command", "old", "new"),
    [
        ("evaluate", ["--drawings=64"], ["--images=64"]),
        ("evaluate", ["--curve", "--beside=a,b"], ["--learning_curve", "--compare_to=a,b"]),
        ("evaluate", ["--beside", "a"], ["--compare_to", "a"]),
        ("generate", ["--points=16"], ["--steps=15"]),
        ("generate", ["--points", "16", "--seed=1"], ["--steps=15", "--seed=1"]),
        ("generate", ["--batch-size=2"], ["--batch_size=2"]),
        ("evaluate_images", ["alignment", "--pictures=p"], ["alignment", "--images=p"]),
        ("plan", ["--rows_a_device=2"], ["--rows_per_device=2"]),
        ("train", ["--config=experiments/emoji.py"], ["--config=experiments/emoji/demo.py"]),
        (
            "train",
            ["--config", "experiments/emoji_all.py"],
            ["--config", "experiments/emoji/all_tasks.py"],
        ),
        ("train", ["--config.start_from=a"], ["--config.init_from=a"]),
        ("train", ["--config.samples.points=8"], ["--config.samples.steps=7"]),
        ("train", ["--config.data.draw_rows=8"], ["--config.data.generation_rows=8"]),
        ("evaluate", ["--sweep.settings.points=(4,8)"], ["--sweep.settings.steps=(3,7)"]),
    ],
)
def test_old_command_lines_are_read(command, old, new):
    assert quiet(old_names.arguments, command, old) == new


@pytest.mark.parametrize("old", sorted(old_names.SWEEP_TASKS))
def test_old_sweep_tasks_have_todays_names(old):
    with pytest.warns(FutureWarning, match=old):
        assert old_names.sweep_task(old) == old_names.SWEEP_TASKS[old]


@pytest.mark.parametrize("old", sorted(old_names.COMMANDS))
def test_old_modules_of_commands_still_run(old):
    call = [sys.executable, "-m", old, "--help"]
    process = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 0, process.stderr
    assert "usage:" in process.stdout
    assert old in process.stderr and old_names.COMMANDS[old] in process.stderr


def test_every_old_experiment_file_has_a_successor():
    from pathlib import Path

    assert all(Path(new).is_file() for new in old_names.EXPERIMENT_FILES.values())
