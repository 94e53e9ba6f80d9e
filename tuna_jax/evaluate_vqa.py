"""Asks a model questions with known answers, from a JSONL file or any TFDS data set.

Examples:

    # Words that match a right answer; replies go to answers.jsonl:
    python -m tuna_jax.evaluate_vqa --model=runs/emoji_all --questions=runs/questions/pictures.jsonl

    # The likeliest of each line's choices; the likelihood and perplexity of the answers:
    python -m tuna_jax.evaluate_vqa --model=model/ --questions=quiz.jsonl --task=multiple_choice
    python -m tuna_jax.evaluate_vqa --model=model/ --questions=quiz.jsonl --task=log_likelihood

    # A prepared TFDS data set; of one with labels, the same question about each picture:
    python -m tuna_jax.evaluate_vqa --model=model/ --tfds=my_vqa \\
        --fields=image=image,question=q,answer=a
    python -m tuna_jax.evaluate_vqa --model=model/ --tfds=beans --split=test --fields=image=image,caption=label \\
        --question="how is this leaf?" --choices=angular_leaf_spot,bean_rust,healthy --task=multiple_choice

A line of a file: {"image": "a.png", "question": "what is this?", "answer": "a cat", "choices": ["a dog", "a cat"]};
`image` may be a list, or `video` in its place, or absent; `answer` a list of right ones, or a place among the choices.
Pictures lie beside the file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if (chosen.questions is None) == (chosen.tfds is None):
        parser.error("give either --questions=FILE or --tfds=NAME")
    if chosen.tfds and not chosen.fields:
        parser.error("--tfds wants --fields, such as image=image,question=q,answer=a")
    try:
        _run(chosen)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuna_jax.evaluate_vqa",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="PATH", help="workdir of a run, or a converted model")
    add("--vae", metavar="PATH", help="the VAE, if the model has none in it")
    add("--tokenizer", metavar="PATH", help="the tokenizer, if the model names none")
    add("--task", default="exact_match", help="exact_match, multiple_choice or log_likelihood")
    add("--questions", metavar="FILE", help="JSON lines")
    add("--tfds", metavar="NAME", help="a data set's name, or its prepared folder")
    add("--split", default="test", help="of the data set (default test)")
    add("--fields", type=_fields, metavar="A=B,...", help="our key = the data set's feature")
    add("--data_dir", metavar="FOLDER", help="where prepared data sets are")
    add("--question", default="", help="about every picture, where fields name a caption")
    add("--choices", type=_list, default=[], metavar="A,B", help="where questions have none")
    add("--count", type=int, metavar="N", help="only the first N questions")
    add("--template", choices=("chat", "plain"), help="by default as in the model's training")
    add("--frames", type=int, default=17, help="at most so many of a video, 1 + 4k (default 17)")
    add("--max_new_tokens", type=int, default=32, help="of a reply (default 32)")
    add("--batch_size", type=int, metavar="N", help="most rows at once")
    add("--output", default="answers.jsonl", metavar="FILE", help="a line a question")
    return parser


def _fields(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(key and value for key, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form image=photo,answer=a")
    return {key: value for key, _, value in pairs}


def _list(text: str) -> list[str]:
    return [one for one in text.split(",") if one]


def _run(chosen: argparse.Namespace) -> None:
    from tuna_jax.evaluation.metrics.accuracy import Score
    from tuna_jax.evaluation.vqa import datasets, run
    from tuna_jax.inference.pipeline import Tuna

    if chosen.task not in run.TASKS:
        raise ValueError(f"unknown task {chosen.task!r}; choose {', '.join(run.TASKS)}")
    if chosen.questions:
        items = datasets.read_lines(chosen.questions, chosen.choices)[: chosen.count]
    else:
        items = datasets.read_tfds(
            chosen.tfds,
            chosen.split,
            chosen.fields,
            question=chosen.question,
            choices=chosen.choices,
            data_dir=chosen.data_dir,
            count=chosen.count,
        )
    model = Tuna.load(chosen.model, vae=chosen.vae, tokenizer=chosen.tokenizer)
    names = ("template", "frames", "max_new_tokens", "batch_size")
    options: dict[str, Any] = {name: getattr(chosen, name) for name in names}
    found, rows = run.run(model, items, chosen.task, **options)
    path = Path(chosen.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    if isinstance(found, Score):
        low, high = found.ci95
        print(
            f"{chosen.task} {100 * found.value:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  "
            f"chance {100 * found.chance:.1f} %  n={found.count}"
        )
    else:
        print("  ".join(f"{name} {value:.4f}" for name, value in found.items()))
    print(path)
    print(json.dumps(found.as_json() if isinstance(found, Score) else found))


if __name__ == "__main__":
    sys.exit(main())
