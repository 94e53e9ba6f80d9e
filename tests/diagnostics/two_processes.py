"""What test_doctor.py runs on two processes of one device each: the command as it is, and with something broken.

`main` writes [status, report] of each run to FOLDER/NAME.json.
"""

import importlib.metadata
import sys
from pathlib import Path
from unittest import mock

import fake_training
import jax

from tuna_jax import doctor, train
from tuna_jax.diagnostics import collectives, devices
from tuna_jax.diagnostics.files import LocalFiles
from tuna_jax.parallel import distributed
from tuna_jax.training import loop


def other_version(name):
    return "0.2.17" if name == "grain" else _version(name)


_version = importlib.metadata.version


def stale_names(self, folder=""):
    """The first answer, for ever."""
    known = self.__dict__.setdefault("known", {})
    if folder not in known:
        known[folder] = _names(self, folder) if (self._folder / folder).exists() else []
    return known[folder]


_names = LocalFiles.names


def broken(*arguments):
    raise OSError("this device does not answer")


def main(folder: Path) -> None:
    distributed.initialize()
    second = jax.process_index() == 1

    def run(name, checks, patch=None):
        arguments = [f"--checks={checks}", f"--folder={folder}", f"--output={folder}/{name}.json"]
        arguments += ["--megabytes=2"]
        with patch or mock.MagicMock():
            status = doctor.main(arguments)
        (folder / f"{name}.{jax.process_index()}.status").write_text(str(status))

    def on_second(*target):
        return mock.patch.object(*target) if second else None

    # A real training run on two processes takes a minute of cores; test_processes.py has one.
    trainers = mock.patch.dict(train.TRAINERS, {"emoji": "fake_training:trainer"})
    with mock.patch.object(loop, "train", fake_training.loop_of(restores_data=True)):
        run("good", "versions,storage,resume,devices,collectives", trainers)
    run("version", "versions", on_second(importlib.metadata, "version", other_version))
    run("stale", "storage", on_second(LocalFiles, "names", stale_names))
    run("error", "devices,collectives", on_second(devices, "products", broken))
    # It sends nothing.
    wrong = collectives.OPERATIONS["permute"]._replace(run=lambda x, axis, n: x)
    run("wrong", "collectives", mock.patch.dict(collectives.OPERATIONS, {"permute": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
