"""What the package carries for users besides code: trained models, and the experiment files of the repository."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]

MODELS = {"emoji": _PACKAGE / "assets" / "emoji"}
"""Name of a model in the package -> its folder, which holds `model.safetensors` and `scores.json`."""


def model_path(path: str | os.PathLike[str]) -> Path:
    """`path`, or the folder of the model in the package that has this name; an existing file or folder comes first."""
    given = Path(path)
    return given if given.exists() else MODELS.get(os.fspath(path), given)


def is_shipped(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in the package, where no command writes."""
    return Path(path).resolve().is_relative_to(_PACKAGE)


def experiment_folder() -> Path:
    """The repository's `experiments/`; in an installed wheel its copy in the package."""
    installed = _PACKAGE / "experiments"
    return installed if installed.is_dir() else _PACKAGE.parent / "experiments"


def experiment_path(path: str) -> Path:
    """An experiment file: `path` as it is, or `emoji/demo` and `experiments/emoji/demo.py` of the package.

    Raises:
      FileNotFoundError: there is no such file; the nearest names are listed.
    """
    if Path(path).is_file():
        return Path(path)
    folder = experiment_folder()
    relative = Path(path[len("experiments/") :] if path.startswith("experiments/") else path)
    found = folder / relative.with_suffix(".py")
    if not relative.is_absolute() and found.is_file():
        return found
    import difflib

    names = sorted(
        file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.py")
    )
    near = difflib.get_close_matches(relative.with_suffix("").as_posix(), names, n=4, cutoff=0.4)
    raise FileNotFoundError(
        f"there is no experiment file {path}; the package has {', '.join(near or names)}"
    )
