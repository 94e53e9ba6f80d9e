"""Where the numbers of a log line go next to `metrics.jsonl`: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Writer(Protocol):
    """Receives the numbers of every log line."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of a step; NaN and infinity stay what they are."""
        ...

    def sync(self, step: int) -> None:
        """Stores what was written so far, in files that are closed; `step` was the last one."""
        ...

    def close(self) -> None:
        """Stores everything."""
        ...


class TensorBoard:
    """Event files in `tensorboard/`.

    Args:
      workdir: the run's folder.
      start: the step from which the run starts or resumes.
    """

    def __init__(self, workdir: Path, start: int) -> None:
        from tensorboardX import SummaryWriter

        folder = str(workdir / "tensorboard")
        # purge_step hides what an interrupted run wrote after the checkpoint.
        self._open = lambda step: SummaryWriter(
            folder, purge_step=step + 1, filename_suffix=f".{step + 1}"
        )
        self._board = self._open(start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self, step: int) -> None:
        self._board.close()
        self._board = self._open(step)

    def close(self) -> None:
        self._board.close()


class WeightsAndBiases:
    """A run of Weights & Biases, in `wandb/`; offline unless the variable WANDB_MODE says `online`.

    A resumed run continues under the same id, which is kept in `wandb/id.txt`. What was written offline is uploaded by
    `wandb sync --append WORKDIR/wandb/offline-run-*`.

    Args:
      workdir: the run's folder.
      start: the step from which the run starts or resumes.

    Raises:
      ImportError: the package wandb is not installed.
    """

    def __init__(self, workdir: Path, start: int) -> None:
        del start
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "config.metric_writers names 'wandb', and the package is not installed: pip install wandb"
            ) from error
        identity = workdir / "wandb" / "id.txt"
        identity.parent.mkdir(parents=True, exist_ok=True)
        if not identity.exists():
            identity.write_text(uuid.uuid4().hex[:12])
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "tuna_jax"),
            dir=str(workdir),
            name=os.environ.get("WANDB_NAME", workdir.resolve().name),
            id=identity.open(encoding="utf-8").readline().strip(),
            mode=os.environ.get("WANDB_MODE", "offline"),  # pyright: ignore[reportArgumentType]
            resume="allow" if os.environ.get("WANDB_MODE") == "online" else None,
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def sync(self, step: int) -> None:
        """Nothing: its files cannot be closed and continued. In a mounted bucket they are stored at the end."""

    def close(self) -> None:
        self._run.finish()


WRITERS: dict[str, Callable[[Path, int], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check(names: Sequence[str]) -> None:
    """Raises ValueError if a writer of `config.metric_writers` is unknown."""
    for name in names:
        if name not in WRITERS:
            raise ValueError(
                f"config.metric_writers has {name!r}; it may have {', '.join(map(repr, WRITERS))}. The log in "
                f"metrics.jsonl is always written"
            )
