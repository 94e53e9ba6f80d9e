"""What test_ring.py runs on two processes with two devices each: a ring of four devices, and its batch."""

import json
import sys
from pathlib import Path

import jax
import numpy as np

from tuna_jax.config import preset
from tuna_jax.models import attention
from tuna_jax.models.logical_sharding import use_sharding
from tuna_jax.parallel import distributed
from tuna_jax.parallel.activation_sharding import Activations
from tuna_jax.parallel.mesh import MeshSettings, make_mesh
from tuna_jax.training.train_program import LoopSettings, Program


def main(folder: Path) -> None:
    """Writes FOLDER/PROCESS.json."""
    distributed.initialize()
    settings = MeshSettings(data=1, context=4)
    mesh = make_mesh(settings)
    random = np.random.default_rng(0)
    query, key, value, weight = (
        random.standard_normal((2, 41, heads, 8)).astype(np.float32) for heads in (4, 2, 2, 4)
    )
    end = attention.sequence_layout(np.array([[[5, 30]], [[20, 21]]]), 41).visible_end
    end = np.asarray(end)

    def weighed(query, key, value, sharding):
        with use_sharding(sharding):
            seen = attention.attention(query, key, value, end)
        return (seen * weight).sum(), seen

    run = jax.jit(jax.value_and_grad(weighed, (0, 1, 2), has_aux=True), static_argnums=3)
    (_, want), expected = jax.device_get(run(query, key, value, None))
    (_, got), gradients = run(query, key, value, Activations(mesh))
    errors = [
        np.linalg.norm(distributed.to_host(a) - b) / np.linalg.norm(b)
        for a, b in zip((got, *gradients), (want, *expected), strict=True)
    ]

    # ---- a batch of which both processes read all rows
    program = Program(LoopSettings(steps=10**6, mesh=settings), preset("tiny"), ("a",), mesh)
    batch = {"tokens": np.zeros((2, 24), np.int32)}
    placed = program.place(batch)["tokens"]
    assert program.batch_shapes(batch)["tokens"].shape == placed.shape
    results = {
        "part": distributed.batch_part(mesh),
        "error": float(max(errors)),
        "placed": placed.shape,
    }
    (folder / f"{jax.process_index()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
