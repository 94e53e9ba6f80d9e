"""One judge for all tests: its galleries take seconds to build."""

import pytest

from tuna_jax.evaluation.judges import ObjectJudge


@pytest.fixture(scope="session")
def judge():
    return ObjectJudge()


@pytest.fixture(scope="session")
def through_vae():
    """Pictures through the VAE that ships."""
    import jax
    import numpy as np

    from tuna_jax.generation.images import to_uint8
    from tuna_jax.models import vae
    from tuna_jax.training.image_vae import load_image_vae

    config, params = load_image_vae()

    @jax.jit
    def some(params, pictures):
        mean, _ = vae.encode(config, params, pictures[:, None] / 127.5 - 1.0)
        return to_uint8(vae.decode(config, params, mean))[:, 0]

    def through(pictures):
        parts = [pictures[i : i + 16] for i in range(0, len(pictures), 16)]
        return np.concatenate([np.asarray(some(params, part.astype(np.float32))) for part in parts])

    return through
