"""The official scorers' own loading code on what we generate, if their sources are in `TUNA_JAX_SCORERS`.

That folder holds checkouts named geneval, ELLA, OneIG-Benchmark, VBench, ImgEdit and Step1X-Edit. The scorers import
detectors, language models and torchvision at their top, so single functions are taken unchanged from their files;
what would judge an image only records its inputs. Without the sources, test_layouts.py compares us with scorers.py,
which describes what they read.
"""

import ast
import glob
import json
import os
import re
import runpy
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))
SCORERS = Path(os.environ.get("TUNA_JAX_SCORERS", "/nowhere"))
pytestmark = pytest.mark.skipif(
    not SCORERS.is_dir(), reason="TUNA_JAX_SCORERS names no folder with the scorers' sources"
)
MEGFILE = SimpleNamespace(smart_open=open, smart_glob=glob.glob, smart_exists=os.path.exists)


def _official(path: str, *names: str, **context) -> SimpleNamespace:
    """Functions and classes of a file, with the modules that they use."""
    tree = ast.parse((SCORERS / path).read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    assert len(tree.body) == len(names)
    space = {
        "os": os,
        "osp": os.path,
        "re": re,
        "json": json,
        "Image": Image,
        "Path": Path,
        **context,
    }
    exec(compile(tree, path, "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names})


def test_geneval(generated, tmp_path):
    judged = []

    class Table:
        def __init__(self, rows):
            judged.extend(rows)

        def to_json(self, *_, **__):
            pass

    code = _official(
        "geneval/evaluation/evaluate_images.py",
        "main",
        evaluate_image=lambda path, metadata: (Image.open(path).size, metadata),
        pd=SimpleNamespace(DataFrame=Table),
    )
    code.main(
        SimpleNamespace(imagedir=str(generated["geneval"][1]), outfile=str(tmp_path / "r.jsonl"))
    )
    assert len(judged) == 8
    for line in published.GENEVAL:
        assert judged.count(((published.SIDE, published.SIDE), line)) == 4


def test_dpg_bench(generated, tmp_path):
    seen = []
    vqa = SimpleNamespace(vqa=lambda picture, question: seen.append(np.asarray(picture)) or "yes")
    code = _official(
        "ELLA/dpg_bench/compute_dpg_bench.py", "compute_dpg_one_sample", "crop_image", "parse_args"
    )
    questions = {"7": {"qid2tuple": {1: "t"}, "qid2question": {1: "?"}, "qid2dependency": {1: [0]}}}
    args = SimpleNamespace(pic_num=4, res_path=str(tmp_path / "results.txt"))
    path = str(generated["dpg_bench"][1] / "7.png")
    score, *_ = code.compute_dpg_one_sample(args, questions, path, vqa, published.SIDE)
    assert score == 1.0
    prompts, size = ["A long story of 7."], (published.SIDE, published.SIDE)
    for sample, crop in enumerate(seen):
        np.testing.assert_array_equal(crop, published.noise(prompts, [(0, sample)], None, size)[0])
    assert len(seen) == 4


def test_oneig(generated, tmp_path):
    code = _official(
        "OneIG-Benchmark/scripts/utils/utils.py",
        "split_mxn_grid",
        "is_black_image",
        megfile=MEGFILE,
    )
    # As alignment_score.py finds a prompt's file.
    (path,) = glob.glob(f"{generated['oneig'][1]}/human/tuna/000*")
    samples = code.split_mxn_grid(path, (2, 2), str(tmp_path))
    assert [Image.open(sample).size for sample in samples] == [(published.SIDE, published.SIDE)] * 4


def test_vbench(generated, prompts, tmp_path, capsys):
    tools = _official(
        "VBench/vbench/utils.py", "get_prompt_from_filename", "save_json", "load_json"
    )
    code = _official(
        "VBench/vbench/__init__.py", "VBench", chain=chain, print0=print, **vars(tools)
    )
    info = prompts / "vbench/VBench_full_info.json"
    folder = generated["vbench"][1]
    scorer = code.VBench("cpu", str(info), str(tmp_path))
    info_file = scorer.build_full_info_json(str(folder), "ours", scorer.build_full_dimension_list())
    rows = json.loads(Path(info_file).read_text())
    assert [len(row["video_list"]) for row in rows] == [5] * len(published.VBENCH)
    assert "not found" not in capsys.readouterr().out
    # static_filter.py reads the prompt from the names of all 25.
    names = [tools.get_prompt_from_filename(str(path)) for path in folder.iterdir()]
    assert names.count("In a still frame, a stop sign") == 25


def test_imgedit(generated, prompts):
    def answer(original, result, prompt, kind, _):
        sizes = Image.open(original).size, Image.open(result).size
        message = SimpleNamespace(message=SimpleNamespace(content=(sizes, prompt, kind)))
        return SimpleNamespace(choices=[message])

    code = _official(
        "ImgEdit/Benchmark/Basic/basic_bench.py", "process_single_item", call_gpt=answer
    )
    for key, entry in published.IMGEDIT.items():
        folders = str(generated["imgedit"][1]), str(prompts / "imgedit")
        scored = code.process_single_item(key, entry, *folders, {})
        sizes = (80, 60), (published.SIDE, published.SIDE)
        assert scored == (key, (sizes, entry["prompt"], entry["edit_type"]))


def test_gedit(generated):
    judged = []

    def evaluate(pictures, prompt):
        judged.append(([picture.size for picture in pictures], prompt))
        return 1, 1, 1

    for key, task, language, size in published.GEDIT:
        code = _official(
            "Step1X-Edit/GEdit-Bench/test_gedit_score.py",
            "process_single_item",
            megfile=MEGFILE,
            save_path=str(generated["gedit"][1] / "tuna"),
            group_name=task,
        )
        item = {"key": key, "instruction": f"do {key}", "instruction_language": language}
        item["Intersection_exist"] = True
        scored = code.process_single_item(item, SimpleNamespace(evaluate=evaluate), max_retries=1)
        assert scored["sementics_score"] == 1
        assert judged[-1] == ([size, size], f"do {key}")
