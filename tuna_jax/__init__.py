"""TUNA in JAX: one model that understands and generates images and video.

import tuna_jax

model = tuna_jax.Tuna.load("runs/demo")
images = model.generate_image(["a red apple on a blue background"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuna_jax.utils.old_names import install_old_commands

if TYPE_CHECKING:
    from tuna_jax.inference.pipeline import Tuna

__all__ = ["Tuna"]

install_old_commands()


def __getattr__(name: str) -> Any:
    # Imported on first use: `import tuna_jax` stays cheap, and parts of it need no JAX.
    if name == "Tuna":
        from tuna_jax.inference.pipeline import Tuna

        return Tuna
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
