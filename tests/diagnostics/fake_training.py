"""A trainer and a loop that cost nothing, in place of the real ones: what stops and compares runs is under test."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax

from tuna_jax.parallel import distributed
from tuna_jax.training.metrics import METRICS_FILE


def trainer(values, workdir, train_loop):
    """A trainer without model and data: its batches are their own numbers."""
    return train_loop(SimpleNamespace(**values), None, workdir, Batches())


class Batches:
    next = 0

    def __next__(self):
        self.next += 1
        return self.next


def loop_of(restores_data):
    """A training loop whose losses depend on the step and on the batch; it restores the latter only if it should."""

    def train(settings, config, workdir, iterator):
        del config
        workdir = Path(workdir)
        saved, log = workdir / "saved.json", workdir / METRICS_FILE
        workdir.mkdir(parents=True, exist_ok=True)
        start, lines = json.loads(saved.read_text()) if saved.exists() else (0, "")
        distributed.wait_for_all()  # Process 0 writes for all.
        if restores_data:
            iterator._iterator.next = start
        for step in range(start + 1, settings.steps + 1):
            batch = next(iterator)
            lines += json.dumps({"step": step, "loss": step + batch / 7}) + "\n"
            if jax.process_index() == 0:
                log.write_text(lines)
                if step % settings.checkpoint_every == 0:
                    saved.write_text(json.dumps([step, lines]))
        return True

    return train
