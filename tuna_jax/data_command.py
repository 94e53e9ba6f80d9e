"""Data sets: lists a folder of pictures, inspects any source, converts it into files that are read fast, and scans it.

Examples:

    # A folder of pictures becomes a manifest; captions come from NAME.txt next to each picture:
    tuna-jax data list pictures/ --output=data/pictures.jsonl

    # What is in a source, and what would be invalid and why, as a page:
    tuna-jax data inspect data/pictures.jsonl --output=data/pictures.html

    # Rows with other keys: a key map, or the keys of public code:
    tuna-jax data inspect "shards/{00000..00127}.tar" --fields=caption=prompt
    tuna-jax data inspect llava_v1_5_mix665k.json --format=llava --image_root=images/

    # Any source as ArrayRecord, in shards; the same command resumes:
    tuna-jax data convert data/pictures.jsonl data/pictures_records

    # The sizes and tokens of an experiment's examples, which a run needs before its first step; any number of hosts
    # may run this at once, also while a run trains on a part (`part_rows`):
    tuna-jax data scan --config=experiments/tuna/tuna_1p5b_stage1.py --config.data.index=/shared/indexes
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuna_jax.cli import config_flags, parsing
from tuna_jax.data.convert_source import convert
from tuna_jax.data.inspection import inspect, summary
from tuna_jax.data.invalid_examples import InvalidExamples
from tuna_jax.data.media.image import SMALLEST_SIDE
from tuna_jax.data.mixture.tokenize_example import ACCEPTS
from tuna_jax.data.picture_folder import CAPTIONS, list_pictures
from tuna_jax.data.sources.base import ExampleSource
from tuna_jax.data.sources.fields import PRESETS
from tuna_jax.data.sources.open import open_source
from tuna_jax.data.text.tokenizer import Tokenizer
from tuna_jax.evaluation import html
from tuna_jax.utils import old_names
from tuna_jax.utils.atomic_io import atomic_file
from tuna_jax.utils.config_parsing import parse
from tuna_jax.utils.text_files import json_text


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("data", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    listing = commands.add_parser("list", help="a folder of pictures as a manifest with captions")
    listing.add_argument("folder", type=Path, metavar="FOLDER", help="it and its subfolders")
    listing.add_argument("--output", type=Path, required=True, metavar="FILE", help="the manifest")
    listing.add_argument(
        "--captions",
        choices=CAPTIONS,
        default="txt",
        help="'txt': of NAME.txt next to each picture; 'names': the pictures' names; 'folders': the names of their "
        "folders (default txt)",
    )

    inspecting = commands.add_parser("inspect", help="what is in a source, as a page")
    _add_source(inspecting)
    add = inspecting.add_argument
    add("--output", type=Path, metavar="FILE", help="the page (default: none, only a summary)")
    add("--json", type=Path, metavar="FILE", help="the numbers of the page as JSON")
    add(
        "--rows",
        type=int,
        default=10_000,
        metavar="N",
        help="the most examples to look at, evenly spaced; 0 is all (default 10000)",
    )
    add("--pictures", type=int, default=32, metavar="N", help="on the page (default 32)")
    add("--task", choices=tuple(ACCEPTS), help="others are invalid (default: every kind is valid)")
    add(
        "--vocabulary",
        default="",
        metavar="PATH",
        help="counts tokens: a compact vocabulary or a Hugging Face folder (default: Qwen2.5's)",
    )

    converting = commands.add_parser("convert", help="any source as ArrayRecord, in shards")
    _add_source(converting)
    add = converting.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the shards")
    add(
        "--shard_rows",
        type=parsing.positive_int,
        default=4096,
        metavar="N",
        help="examples per shard; shards of 1 to 2 GB are read well (default 4096)",
    )
    add(
        "--smallest",
        type=parsing.positive_int,
        default=SMALLEST_SIDE,
        metavar="PIXELS",
        help=f"shortest side that an image may have (default {SMALLEST_SIDE})",
    )
    add(
        "--max_invalid_fraction",
        type=float,
        default=0.05,
        metavar="FRACTION",
        help="stop if a larger fraction of the examples is invalid (default 0.05)",
    )
    add("--process_index", type=int, default=0, metavar="I", help="of this host (default 0)")
    add(
        "--process_count",
        type=parsing.positive_int,
        default=1,
        metavar="N",
        help="hosts that share the work; each writes its own shards (default 1)",
    )
    _add_scan(commands)
    return parser


def _add_scan(commands: Any) -> None:
    scanning = commands.add_parser(
        "scan",
        help="the sizes and tokens of an experiment's examples, kept for its run",
        description="Reads sizes and tokens of all examples of an experiment's streams, and keeps them where its run "
        "looks for them (config.data.index, config.data.cache). All processes and hosts that run the same command and "
        "see that folder divide the work; it resumes when it is run again.",
    )
    config_flags.add_config(scanning, example="experiments/tuna/tuna_1p5b_stage1.py", required=True)


def _add_source(parser: Any) -> None:
    """Adds the flags that name a source."""
    add = parser.add_argument
    add(
        "source",
        metavar="SOURCE",
        help="file, folder or pattern: JSON lines or arrays, Parquet, WebDataset tars, ArrayRecord, latents, or the "
        "folder of a TFDS data set",
    )
    add(
        "--image_root",
        metavar="DIR",
        help="where names of files in rows begin (default: the source's folder)",
    )
    add(
        "--fields",
        type=parsing.mapping,
        default={},
        metavar="KEY=NAME,...",
        help="key map, such as image=path,caption=prompt",
    )
    add("--format", default="", choices=("", *PRESETS), help="the keys of public data")
    add("--split", default="train", help="of a TFDS data set (default train)")
    add(
        "--index",
        default="",
        metavar="DIR",
        help="where indexes are kept: a folder, or 'with_data': next to the data (default: the cache folder)",
    )
    add(
        "--threads",
        type=parsing.positive_int,
        default=8,
        metavar="N",
        help="files that are read at a time (default 8)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    given, overrides = config_flags.split_overrides(parsing.current_arguments("data", arguments))
    parser = _parser()
    options = parser.parse_args(given)
    if overrides and options.command != "scan":
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    options.overrides = overrides
    return parsing.run(lambda: _COMMANDS[options.command](options), options.verbosity)


def _source(options: argparse.Namespace) -> ExampleSource:
    return open_source(
        options.source,
        image_root=options.image_root,
        fields=options.fields,
        preset=options.format,
        split=options.split,
        index=options.index,
    )


def _list(options: argparse.Namespace) -> int:
    counts = list_pictures(options.folder, options.output, options.captions)
    without = f"; {counts['without']} pictures have no caption" if counts["without"] else ""
    print(f"{options.output}: {counts['pictures']} pictures{without}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    found = inspect(
        _source(options),
        Tokenizer(options.vocabulary or None),
        rows=options.rows,
        pictures=options.pictures,
        threads=options.threads,
        task=options.task,
    )
    print(summary(found))
    if options.output:
        page = html.render(
            "evaluation/data_page.html.j2", title=f"Data: {found.source}", found=found
        )
        with atomic_file(options.output) as scratch:
            scratch.write_text(page, encoding="utf-8")
        print(f"the page is {options.output}")
    if options.json:
        with atomic_file(options.json) as scratch:
            scratch.write_text(json_text(found.to_json(), indent=1), encoding="utf-8")
    return 0


def _convert(options: argparse.Namespace) -> int:
    counts = convert(
        _source(options),
        options.folder,
        shard_rows=options.shard_rows,
        smallest=options.smallest,
        process_index=options.process_index,
        process_count=options.process_count,
        threads=options.threads,
        invalid_examples=InvalidExamples(limit=options.max_invalid_fraction),
    )
    rows = counts.pop("rows")
    invalid = ", ".join(f"{count} {kind}" for kind, count in counts.items()) or "none"
    print(
        f"{options.folder}: {rows} examples written; invalid examples: {invalid} ('bad' in each shard's .json)"
    )
    return 0


def _scan(options: argparse.Namespace) -> int:
    # They take seconds to import.
    from tuna_jax.config import from_dict
    from tuna_jax.inference.components import read_tokenizer
    from tuna_jax.trainers.build_mixture import scan_streams
    from tuna_jax.trainers.config import MultitaskExperiment

    values = old_names.experiment(config_flags.read(options.config, options.overrides))
    if values.get("kind") != "multitask":
        raise ValueError(
            f"--config={options.config} is of kind {values.get('kind')!r}; experiments of kind 'multitask' have "
            "sources to scan"
        )
    settings = parse(MultitaskExperiment, values)
    vocabulary = settings.data.vocabulary or None
    tokenizer = read_tokenizer(vocabulary, from_dict(settings.model))
    for name, text in scan_streams(settings.data, tokenizer):
        print(f"{name}: {text}", flush=True)
    return 0


_COMMANDS = {"list": _list, "inspect": _inspect, "convert": _convert, "scan": _scan}

if __name__ == "__main__":
    sys.exit(main())
