"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tuna_jax.evaluation.benchmarks.image_editing import gedit, imgedit
from tuna_jax.evaluation.benchmarks.spec import Benchmark
from tuna_jax.evaluation.benchmarks.text_to_image import dpg_bench, geneval, oneig
from tuna_jax.evaluation.benchmarks.text_to_video import vbench

NAMES = ("geneval", "dpg_bench", "oneig", "vbench", "imgedit", "gedit")


def read(
    name: str,
    prompts: str | Path | None = None,
    *,
    model: str = "tuna",
    language: str = "en",
    images: str | Path | None = None,
    dimensions: Sequence[str] = (),
) -> Benchmark:
    """A benchmark from its own prompt files.

    Args:
      name: one of NAMES.
      prompts: its prompt file, the folder of it, or a folder with a subfolder per benchmark.
      model: the name of this model for scorers that compare models (oneig, gedit).
      language: 'en' or 'zh' (oneig).
      images: folder of the originals (imgedit).
      dimensions: of VBench; empty for all.

    Raises:
      FileNotFoundError: files do not exist; the message says how to get them.
      ValueError: an unknown benchmark, or an invalid prompt file, with the line.
    """
    if name == "geneval":
        return geneval(prompts)
    if name == "dpg_bench":
        return dpg_bench(prompts)
    if name == "oneig":
        return oneig(prompts, model=model, language=language)
    if name == "vbench":
        return vbench(prompts, dimensions=dimensions)
    if name == "imgedit":
        return imgedit(prompts, images=images)
    if name == "gedit":
        return gedit(prompts, model=model)
    raise ValueError(f"unknown benchmark {name!r}; choose one of {', '.join(NAMES)}")
