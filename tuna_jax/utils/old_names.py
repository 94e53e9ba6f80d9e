"""Names that files, scripts and stored runs of earlier versions may hold, and what they are called now.

This is the only place that knows them. Settings are translated once, where they enter (an experiment or sweep file, a
command line, a stored run), so no other code meets an old name. Each old name that a user wrote is reported in one
line; what a stored run holds is translated silently.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
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
      stored: a run stored them, so nobody is told.
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


def overrides(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments with today's experiment files and today's keys in `--config.KEY=VALUE`.

    Kinds of experiment are not known here: a key that only one kind had is translated if no other kind has it.
    """
    translated = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        flag = name.lstrip("-")
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


def sampling_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword options of generation calls, with `points=n` as `steps=n-1`."""
    translated = dict(options)
    if translated.get("points") is not None:
        report("points=", "steps= (one less)")
        translated.setdefault("steps", _points_to_steps(translated["points"]))
    translated.pop("points", None)
    return translated


def _convert_text(renamed: Renamed, text: str) -> str:
    if renamed.convert is not _points_to_steps:
        return text
    return str(_points_to_steps(int(text))) if text.isdecimal() else text


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
