"""Puts `experiments/` into wheels as `tuna_jax/experiments/`, where `--config=emoji/demo` finds it.

All else is in pyproject.toml.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithExperiments(build_py):
    """Copies the experiment files into the built package; an editable installation reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copytree(
                "experiments",
                Path(self.build_lib, "tuna_jax", "experiments"),
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )


setup(cmdclass={"build_py": BuildWithExperiments})
