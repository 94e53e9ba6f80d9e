"""Names that files, scripts and stored runs of earlier versions may hold, and what they are called now.

This is the only place that knows them. Settings are translated once, where they enter (an experiment or sweep file, a
command line, a stored run), so no other code meets an old name. Each old name that a user wrote is reported in one
line; what a stored run holds is translated silently.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def _points_to_steps(points: Any) -> Any:
    """A grid of n points has n - 1 solver steps."""
    if isinstance(points, (tuple, list)):
        return type(points)(_points_to_steps(value) for value in points)
    return int(points) - 1


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A configuration key that has another name now.

    Attributes:
      old, new: dotted paths below the root of the file.
      convert: from the old value to the new one.
      kinds: `kind`s of experiment that had it; empty: all.
    """

    old: str
    new: str
    convert: Callable[[Any], Any] = lambda value: value
    kinds: tuple[str, ...] = ()


CONFIG_KEYS = (
    Renamed("start_from", "init_from", kinds=("multitask",)),
    Renamed("start", "init_from", kinds=("vae",)),
    Renamed("samples.points", "samples.steps", _points_to_steps),
    Renamed("evaluate.settings.points", "evaluate.settings.steps", _points_to_steps),
    Renamed("evaluate.shown", "evaluate.saved_items"),
    Renamed("data.bad_share", "data.max_invalid_fraction"),
    Renamed("data.bad_least", "data.min_examples_to_judge"),
    Renamed("data.draw_rows", "data.generation_rows"),
    Renamed("data.understand_rows", "data.understanding_rows"),
    Renamed("data.draw_spread", "data.generation_spread"),
    Renamed("data.clips.draw_rows", "data.clips.generation_rows"),
    Renamed("data.clips.understand_rows", "data.clips.understanding_rows"),
)
SWEEP_KEYS = (
    Renamed("settings.points", "settings.steps", _points_to_steps),
    Renamed("shown", "saved_items"),
)
KINDS = {"tuna": "emoji", "mixture": "multitask"}
SWEEP_TASKS = {
    "draw_single": "generate_single",
    "draw_pairs": "generate_pairs",
    "draw_counts": "generate_counts",
    "draw_clips": "generate_clips",
}
EXPERIMENT_FILES = {
    "experiments/emoji.py": "experiments/emoji/demo.py",
    "experiments/emoji_all.py": "experiments/emoji/all_tasks.py",
    "experiments/emoji_generation.py": "experiments/emoji/generation_only.py",
    "experiments/emoji_understanding.py": "experiments/emoji/understanding_only.py",
    "experiments/emoji_vae.py": "experiments/emoji/vae.py",
    **{
        f"experiments/tuna_{size}_stage{stage}.py": f"experiments/tuna/tuna_{size}_stage{stage}.py"
        for size in ("1p5b", "7b")
        for stage in (1, 2, 3)
    },
}
FLAGS = {
    "evaluate": {
        "drawings": "images",
        "answers": "questions",
        "beside": "compare_to",
        "curve": "learning_curve",
    },
    "evaluate_images": {"pictures": "images"},
    "benchmark": {"peer": "baseline"},
    "encode_latents": {"bad_share": "max_invalid_fraction"},
    "plan": {"rows_a_device": "rows_per_device"},
}
"""By command: flags that have another name now. `--points=N` is `--steps=N-1` everywhere."""
COMMANDS = {
    "tuna_jax.evaluate_generation": "tuna_jax.evaluate_benchmarks",
    "tuna_jax.evaluate_pictures": "tuna_jax.evaluate_images",
    "tuna_jax.evaluate_questions": "tuna_jax.evaluate_vqa",
    "tuna_jax.data.encode_latents": "tuna_jax.encode_latents",
    "tuna_jax.data.vocabulary": "tuna_jax.emoji.world.vocabulary",
    "tuna_jax.evaluation.emoji_questions": "tuna_jax.emoji.evaluation.write_questions",
    "tuna_jax.planning.shardings": "tuna_jax.planning.golden_shardings",
}


def report(old: str, new: str) -> None:
    """Warns in one line that `old` is called `new` now."""
    warnings.warn(f"{old} is an old name; write {new}", FutureWarning, stacklevel=3)


def experiment(values: Mapping[str, Any], *, stored: bool = False) -> dict[str, Any]:
    """The mapping of an experiment with today's kind and keys.

    Args:
      values: nested mapping, as from `ConfigDict.to_dict()`, or the settings that a run stored.
      stored: a run stored them, so there is no warning.
    """
    translated = _copy(values)
    kind = translated.get("kind")
    if kind in KINDS:
        translated["kind"] = KINDS[kind]
        if not stored:
            report(f"config.kind={kind!r}", f"{KINDS[kind]!r}")
    return _translate(translated, CONFIG_KEYS, "config", stored)


def sweep(values: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of a sweep's file with today's keys."""
    return _translate(_copy(values), SWEEP_KEYS, "sweep", stored=False)


def arguments(command: str, given: Sequence[str]) -> list[str]:
    """A command line with today's flags, experiment files and keys in `--config.KEY=VALUE`.

    Dashes within a flag's name become underscores. The kind of experiment is not known here, so a key that only one
    kind had (`start` of a VAE's) is left to `experiment`.

    Args:
      command: the command's module name, such as 'evaluate'.
      given: its arguments.
    """
    translated = []
    for argument in _joined_points(given):
        name, equals, value = argument.partition("=")
        flag = name.lstrip("-")
        if name.startswith("--") and "." not in flag:
            flag = flag if flag.startswith("no-") else flag.replace("-", "_")
            new = FLAGS.get(command, {}).get(flag)
            if new is not None:
                report(f"--{flag}", f"--{new}")
            elif flag == "points":
                report(f"--points={value}", f"--steps={_points_text(value)}")
                new, value = "steps", _points_text(value)
            name = f"--{new or flag}"
            argument = f"{name}{equals}{value}"
        if value in EXPERIMENT_FILES or argument in EXPERIMENT_FILES:
            old = value or argument
            report(old, EXPERIMENT_FILES[old])
            argument = f"{name}={EXPERIMENT_FILES[old]}" if value else EXPERIMENT_FILES[old]
        elif flag.startswith(("config.", "sweep.")):
            section, _, path = flag.partition(".")
            for renamed in CONFIG_KEYS if section == "config" else SWEEP_KEYS:
                if path == renamed.old and renamed.old != "start":
                    report(f"--{flag}", f"--{section}.{renamed.new}")
                    text = _convert_text(renamed, value)
                    argument = f"--{section}.{renamed.new}{equals}{text}"
        translated.append(argument)
    return translated


class _OldCommands(importlib.abc.MetaPathFinder):
    """Lets `python -m tuna_jax.OLD_NAME` run the command that has another module now."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        new = COMMANDS.get(fullname)
        if new is None:
            return None
        print(f"warning: {fullname} is an old name; run {new}", file=sys.stderr)
        file = Path(__file__).parents[1].joinpath(*new.split(".")[1:]).with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file)


def install_old_commands() -> None:
    """Makes the old modules of COMMANDS findable, once."""
    if not any(isinstance(finder, _OldCommands) for finder in sys.meta_path):
        sys.meta_path.append(_OldCommands())


def sweep_task(kind: str) -> str:
    """Today's name of a kind of sweep task."""
    if kind in SWEEP_TASKS:
        report(f"the sweep task {kind!r}", repr(SWEEP_TASKS[kind]))
    return SWEEP_TASKS.get(kind, kind)


def hashed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's settings as the first version named them: results are stored under a hash of these names."""
    named = dict(settings)
    if "steps" in named:
        named["points"] = named.pop("steps") + 1
    return named


def stored_sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options that an earlier version wrote to a file, with `points=n` as `steps=n-1`; silently."""
    translated = dict(options)
    if "points" in translated:
        translated["steps"] = _points_to_steps(translated.pop("points"))
    return translated


def sampling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword options of generation calls, with `points=n` as `steps=n-1`."""
    translated = dict(options)
    if translated.get("points") is not None:
        report("points=", "steps= (one less)")
        translated.setdefault("steps", _points_to_steps(translated["points"]))
    translated.pop("points", None)
    return translated


def _convert_text(renamed: Renamed, text: str) -> str:
    return _points_text(text) if renamed.convert is _points_to_steps else text


def _points_text(text: str) -> str:
    """A number of grid points as it stands on a command line, as solver steps."""
    return re.sub(r"\d+", lambda match: str(int(match[0]) - 1), text)


def _joined_points(given: Sequence[str]) -> list[str]:
    """`--points 16` as one argument, since its value changes."""
    joined: list[str] = []
    for argument in given:
        if joined and joined[-1] == "--points":
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined


def _copy(values: Any) -> Any:
    return (
        {key: _copy(item) for key, item in values.items()} if hasattr(values, "items") else values
    )


def _translate(
    values: dict[str, Any], table: Sequence[Renamed], root: str, stored: bool
) -> dict[str, Any]:
    for renamed in table:
        if renamed.kinds and values.get("kind") not in renamed.kinds:
            continue
        *folder, key = renamed.old.split(".")
        section: Any = values
        for name in folder:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or key not in section:
            continue
        if not stored:
            report(f"{root}.{renamed.old}", f"{root}.{renamed.new}")
        target = values
        *folder, new_key = renamed.new.split(".")
        for name in folder:
            target = target.setdefault(name, {})
        target[new_key] = renamed.convert(section.pop(key))
    return values
