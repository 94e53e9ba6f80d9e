"""Visual question answering: asks a model questions with known answers, from a JSONL file or a TFDS data set.

Examples:

    # Exact match with a right answer; the replies go to answers.jsonl:
    tuna-jax evaluate-vqa --model=runs/emoji_all --questions=runs/questions/pictures.jsonl

    # The most likely of each question's choices; the likelihood and the perplexity of the answers:
    tuna-jax evaluate-vqa --model=model/ --questions=quiz.jsonl --task=multiple_choice
    tuna-jax evaluate-vqa --model=model/ --questions=quiz.jsonl --task=log_likelihood

    # A prepared TFDS data set; for one with labels, the same question about each image:
    tuna-jax evaluate-vqa --model=model/ --tfds=my_vqa --fields=image=image,question=q,answer=a
    tuna-jax evaluate-vqa --model=model/ --tfds=beans --split=test --fields=image=image,caption=label \\
        --question="how is this leaf?" --choices=angular_leaf_spot,bean_rust,healthy --task=multiple_choice

A line of a file is {"image": "a.png", "question": "what is this?", "answer": "a cat", "choices": ["a dog", "a cat"]}.
`image` may be a list, or be replaced by `video`, or be absent; `answer` may be a list of right answers, or the position
of the right choice. Paths are relative to the file. In a question `\\<image>` is the text `<image>`.

A question whose image or video cannot be read fails individually: its line in the answers has the reason, the score
is that of the other questions, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tuna_jax.cli import parsing, shared_flags
from tuna_jax.utils.text_files import json_line, json_text

TASKS = ("exact_match", "multiple_choice", "log_likelihood")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(parsing.current_arguments("evaluate_vqa", arguments))
    if (options.questions is None) == (options.tfds is None):
        parser.error("give either --questions=FILE or --tfds=NAME")
    if options.tfds and not options.fields:
        parser.error("--tfds requires --fields, such as image=image,question=q,answer=a")
    return parsing.run_on_all_processes(lambda: _evaluate(options), options.verbosity)


def _parser() -> argparse.ArgumentParser:
    parser = parsing.make_parser("evaluate-vqa", __doc__)
    shared_flags.add_model(parser)
    add = parser.add_argument
    add(
        "--task",
        default="exact_match",
        choices=TASKS,
        help="what is measured (default exact_match)",
    )
    add("--questions", metavar="FILE", help="questions as JSON lines")
    add("--tfds", metavar="NAME", help="name of a TFDS data set, or its prepared folder")
    add("--split", default="test", help="split of the data set (default test)")
    add(
        "--fields",
        type=parsing.mapping,
        metavar="KEY=FEATURE,...",
        help="which feature of the data set is our image, video, question, answer, choices or caption",
    )
    add("--data_dir", metavar="DIR", help="where prepared data sets are (default: TFDS's own)")
    add("--question", default="", help="the question about every image, if fields name a caption")
    add(
        "--choices",
        type=parsing.names,
        default=(),
        metavar="A,B",
        help="choices of the questions that have none of their own",
    )
    add("--count", type=parsing.positive_int, metavar="N", help="only the first N questions")
    add(
        "--template",
        choices=("chat", "plain"),
        help="how a question is put (default: as in the model's training)",
    )
    add(
        "--frames",
        type=parsing.positive_int,
        default=17,
        metavar="N",
        help="at most N frames of a video, 1 + 4k (default 17)",
    )
    add(
        "--max_new_tokens",
        type=parsing.positive_int,
        default=32,
        metavar="N",
        help="longest reply in tokens (default 32)",
    )
    add("--batch_size", type=parsing.positive_int, metavar="N", help="largest batch")
    add(
        "--output",
        default="answers.jsonl",
        metavar="FILE",
        help="one line per question (default answers.jsonl)",
    )
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    from tuna_jax.evaluation.metrics.accuracy import Score
    from tuna_jax.evaluation.vqa import datasets, run

    if options.questions:
        items = datasets.read_lines(options.questions, list(options.choices))[: options.count]
    else:
        items = datasets.read_tfds(
            options.tfds,
            options.split,
            options.fields,
            question=options.question,
            choices=list(options.choices),
            data_dir=options.data_dir,
            count=options.count,
        )
    model = shared_flags.load_model(options)
    names = ("template", "frames", "max_new_tokens", "batch_size")
    decoding: dict[str, Any] = {name: getattr(options, name) for name in names}
    score, rows = run.run(model, items, options.task, **decoding)
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json_line(row) for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    failed = run.report_failures(rows, functools.partial(print, file=sys.stderr))
    if score is None:
        return 1
    if isinstance(score, Score):
        low, high = score.ci95
        print(
            f"{options.task} {100 * score.value:.1f} %  [{100 * low:.1f}, {100 * high:.1f}]  "
            f"chance {100 * score.chance:.1f} %  n={score.count}"
        )
    else:
        print("  ".join(f"{name} {value:.4f}" for name, value in score.items()))
    print(path)
    values = score.as_json() if isinstance(score, Score) else score
    print(json_text({**values, "failed": failed} if failed else values))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
