"""Values of flags, and what a command does around its work."""

import argparse

import pytest

from tuna_jax.cli import config_flags, main, parsing, shared_flags


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parsing.positive_int, "3", 3),
        (parsing.positive_ints, "1,4", [1, 4]),
        (parsing.image_size, "320x512", (320, 512)),
        (parsing.image_size, "64", (64, 64)),
        (parsing.image_sizes, "64,32x48", ((64, 64), (32, 48))),
        (parsing.interval, "0.1,0.9", (0.1, 0.9)),
        (parsing.names, "a,b", ("a", "b")),
        (parsing.mapping, "image=photo,answer=a", {"image": "photo", "answer": "a"}),
        (parsing.shard, "1/4", (1, 4)),
    ],
)
def test_values_are_parsed(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parsing.positive_int, "0"),
        (parsing.positive_int, "-1"),
        (parsing.positive_int, "1.5"),
        (parsing.positive_ints, "1,,2"),
        (parsing.image_size, "1x2x3"),
        (parsing.image_size, "wide"),
        (parsing.interval, "0.1"),
        (parsing.mapping, "image"),
        (parsing.shard, "2/2"),
        (shared_flags.mesh_sizes, "fsdp"),
        (shared_flags.mesh_sizes, "rows=2"),
        (shared_flags.mesh_sizes, "fsdp=0"),
    ],
)
def test_wrong_values_are_named(parse, text):
    with pytest.raises(argparse.ArgumentTypeError, match=r"'"):
        parse(text)


def test_a_mesh_names_every_axis():
    assert shared_flags.mesh_sizes("fsdp=4,tensor=2") == {
        "slices": 1,
        "data": 1,
        "fsdp": 4,
        "context": 1,
        "tensor": 2,
    }


def test_an_error_of_input_is_one_line_and_status_1(capsys):
    def work() -> None:
        raise ValueError("config.steps is -1")

    assert parsing.run(work) == 1
    assert capsys.readouterr().err == "error: config.steps is -1\n"
    assert parsing.run(work, verbosity=1) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_error_of_the_program_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        parsing.run(lambda: 1 // 0)


def test_overrides_are_taken_off_the_command_line():
    given = ["--workdir=w", "--config.steps", "5", "--noconfig.model.unroll", "--sweep.batch=3"]
    assert config_flags.split_overrides(given) == (
        ["--workdir=w"],
        ["--config.steps=5", "--noconfig.model.unroll", "--sweep.batch=3"],
    )


FILE = "tests/training/tiny.py"


def test_an_experiment_file_is_read_with_its_overrides():
    overrides = ["--config.steps=7", "--noconfig.model.unroll", "--sweep.batch=3"]
    values = config_flags.read(FILE, overrides)
    assert values["steps"] == 7 and values["model"]["unroll"] is False
    assert values["kind"] == config_flags.read(FILE)["kind"]


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("--config.steps.more=7", r"config\.steps\.more"),
        ("--config.steps=many", r"many"),
    ],
)
def test_a_wrong_override_is_named(override, key):
    with pytest.raises(ValueError, match=key):
        config_flags.read(FILE, [override])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.py"):
        config_flags.read("nowhere.py")


def test_the_console_script_lists_its_commands(capsys):
    assert main.main(["--help"]) == 0
    help_text = capsys.readouterr().out
    assert all(name in help_text for name in main.COMMANDS)
    assert main.main([]) == 2
    assert main.main(["paint"]) == 2
    assert "'paint'" in capsys.readouterr().err
    assert main.main(["--version"]) == 0


def test_the_console_script_runs_a_command(capsys):
    assert main.main(["convert", "inspect", "nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err
