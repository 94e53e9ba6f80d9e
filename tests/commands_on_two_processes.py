"""Runs the commands of a JSON file, a list of [name, status, arguments], one after the other in this process.

test_several_processes.py starts it in one process and in two.
"""

import importlib
import json
import sys
from pathlib import Path


def main(file: Path) -> None:
    """Each command must return its status."""
    for name, status, arguments in json.loads(file.read_text()):
        command = importlib.import_module(f"tuna_jax.{name}")
        returned = command.main(arguments)
        assert returned == status, f"{name} {arguments} returned {returned}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
