"""Benchmarks of edits: ImgEdit (basic) and GEdit-Bench.

Layouts are those that the scorers' own code reads: PKU-YuanGroup/ImgEdit at 547185d (Benchmark/Basic/basic_bench.py),
stepfun-ai/Step1X-Edit at 570eba6 (GEdit-Bench/test_gedit_score.py, generate_image_example.py).
"""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from tuna_jax.evaluation.benchmarks.spec import (
    Benchmark,
    Companion,
    Piece,
    distinct,
    file_name,
    find,
    text_of,
)
from tuna_jax.utils.text_files import read_json

_GEDIT_TEXTS = ("key", "task_type", "instruction", "instruction_language")
_GEDIT_HINT = (
    "download the data set stepfun-ai/GEdit-Bench from Hugging Face: its parquet files, or what `save_to_disk` of the "
    "package datasets wrote"
)


def imgedit(data: str | Path | None, *, images: str | Path | None = None) -> Benchmark:
    """ImgEdit's basic test: `KEY.png` for each key of the prompt file.

    Args:
      data: where `basic_edit.json` is (`singleturn.json` in the archive of images).
      images: the folder that the originals' paths are relative to; None for the prompt file's folder.

    Raises:
      FileNotFoundError: the prompt file or all originals do not exist.
      ValueError: an invalid entry, named by its key.
    """
    hint = "it is Benchmark/Basic/basic_edit.json of github.com/PKU-YuanGroup/ImgEdit"
    path = find(data, "imgedit", ["basic_edit.json", "singleturn.json"], hint)
    root = Path(images) if images is not None else path.parent
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: it must be an object of entries by key")
    pieces, missing = [], []
    for place, (key, entry) in enumerate(entries.items()):
        where = f"{path}, key {key!r}"
        prompt, original = text_of(entry, "prompt", where), root / text_of(entry, "id", where)
        text_of(entry, "edit_type", where)
        if not original.is_file():
            missing.append(f"{where}: no original at {original}")
        name = file_name(f"{key}.png", where)
        pieces.append(Piece(name, prompt, place, source=original.resolve()))
    # One that is missing fails individually, when its edit is generated.
    if missing and len(missing) == len(pieces):
        raise FileNotFoundError(f"{missing[0]}; name the folder of originals with --images=")
    return Benchmark(
        "imgedit",
        distinct(pieces, str(path)),
        prompts=len(pieces),
        published=737,
        scorer=f"python basic_bench.py --result_img_folder {{folder}} --edit_json {path} --origin_img_root {root} "
        f"--prompts_json prompts.json",
        tolerated=("result.json",),  # The scorer writes its answers there.
    )


def gedit(data: str | Path | None, *, model: str = "tuna") -> Benchmark:
    """GEdit-Bench: `MODEL/fullset/TASK/LANGUAGE/KEY.png`, and its source as `KEY_SRCIMG.png` next to it.

    The scorer silently skips files without a source next to them.

    Args:
      data: the folder of the data set's `.parquet` or `.arrow` files; requires the package pyarrow.
      model: the name of its folder; folders of other models may exist next to it.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: an invalid row, named by its number.
    """
    folder, model = _data_set(data), file_name(model, "--name")
    pieces, companions = [], []
    for place, (row, picture) in enumerate(_rows(folder)):
        where = f"{folder}, row {place}"
        key, task, instruction, language = (text_of(row, name, where) for name in _GEDIT_TEXTS)
        folder_name = f"{model}/fullset/{file_name(task, where)}/{file_name(language, where)}"
        source = f"{folder_name}/{file_name(key, where)}_SRCIMG.png"
        companions.append(Companion(source, place, picture=picture))
        pieces.append(Piece(f"{folder_name}/{key}.png", instruction, place, source=Path(source)))
    return Benchmark(
        "gedit",
        distinct(pieces, str(folder)),
        prompts=len(pieces),
        published=1212,
        scorer=f"python test_gedit_score.py --model_name {model} --save_path {{folder}} --backbone qwen25vl",
        companions=tuple(companions),
        own=(f"{model}/fullset",),
    )


def _data_set(data: str | Path | None) -> Path:
    """The folder with the files of the data set."""
    if data is None:
        raise FileNotFoundError(f"gedit requires --prompts=FOLDER; {_GEDIT_HINT}")
    for part in ("", "data", "train", "gedit", "gedit/data", "gedit/train"):
        folder = Path(data) / part
        if _files(folder, "*.parquet") or _files(folder, "*.arrow"):
            return folder
    raise FileNotFoundError(f"{data} has no .parquet and no .arrow file; {_GEDIT_HINT}")


def _files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder, without hidden ones, such as macOS's `._x`."""
    return sorted(file for file in folder.glob(pattern) if not file.name.startswith("."))


def _rows(folder: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """The texts of each row and a function that reads its image, in the order of the files."""
    import pyarrow.parquet

    columns = [*_GEDIT_TEXTS, "input_image"]
    for path in _files(folder, "*.parquet"):
        file = pyarrow.parquet.ParquetFile(path)
        _check_columns(path, columns, file.schema_arrow.names)
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=list(_GEDIT_TEXTS)).to_pylist()
            for row, text in enumerate(texts):
                yield text, functools.partial(_parquet_picture, path, group, row)
    for path in _files(folder, "*.arrow"):
        table = _arrow_table(path)
        _check_columns(path, columns, table.column_names)
        for row, text in enumerate(table.select(list(_GEDIT_TEXTS)).to_pylist()):
            yield text, functools.partial(_arrow_picture, path, row)


def _check_columns(path: Path, required: list[str], existing: list[str]) -> None:
    missing = [name for name in required if name not in existing]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; it has {', '.join(existing)}")


@functools.lru_cache(maxsize=1)  # Images are read in order.
def _row_group(path: Path, group: int) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=["input_image"])


@functools.lru_cache(maxsize=8)  # Memory maps.
def _arrow_table(path: Path) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()


def _parquet_picture(path: Path, group: int, row: int) -> Image.Image:
    return _opened(_row_group(path, group)["input_image"][row].as_py(), f"{path}, row {row}")


def _arrow_picture(path: Path, row: int) -> Image.Image:
    return _opened(_arrow_table(path)["input_image"][row].as_py(), f"{path}, row {row}")


def _opened(value: Any, where: str) -> Image.Image:
    """An image as the package datasets stores it: `{"bytes": ..., "path": ...}`."""
    if not isinstance(value, dict) or not value.get("bytes"):
        raise ValueError(f"{where}: the column input_image holds no image")
    return Image.open(io.BytesIO(value["bytes"]))
