"""Options from anywhere are accepted and mean something, or are a ValueError that names them."""

import argparse
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuna_jax import flow
from tuna_jax.cli import parsing
from tuna_jax.inference import generation_config, option_checks
from tuna_jax.inference.generation_config import SamplingSettings
from tuna_jax.inference.requests import KEYS, TASKS, read_requests

BOUNDED = settings(derandomize=True, max_examples=150, deadline=None)
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from(
        [0, 1, -1, 2**31, 2**32, 2**63, 2**64, 1e30, math.nan, math.inf, -math.inf, True]
    ),
    st.sampled_from([np.float32(3), np.float64("nan"), np.int64(7), np.uint64(2**64 - 1)]),
)
VALUES = st.one_of(
    NUMBERS,
    st.text(max_size=8),
    st.none(),
    st.binary(max_size=4),
    st.lists(NUMBERS, max_size=3),
    st.tuples(NUMBERS, NUMBERS),
    st.dictionaries(st.text(max_size=3), NUMBERS, max_size=2),
    st.just("\ud83d"),
    st.just(10**5000),
    st.builds(object),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _means_something(name, value):
    if name in ("guidance", "shift", "temperature", "top_p"):
        assert math.isfinite(value) and value >= 0
    if name in ("steps", "batch_size", "max_new_tokens", "top_k"):
        assert type(value) is int and value >= 0
    if name == "seed":
        pairs = [(value, 0)] if isinstance(value, int) else value
        assert all(0 <= seed < 2**64 and 0 <= row < 2**32 for seed, row in pairs)
    if name == "guidance_interval":
        flow.guidance_bounds(value)
    if name == "size":
        assert len(value) == 2 and min(value) >= 1
    if name in ("negative", "solver", "template"):
        json.dumps(value).encode()


@pytest.mark.parametrize("kind", ["sampling", "decoding"])
@BOUNDED
@given(st.data())
def test_an_option_is_meaningful_or_a_named_error(kind, data):
    checks = {"sampling": option_checks.SAMPLING, "decoding": option_checks.DECODING}[kind]
    name = data.draw(st.sampled_from([*checks, "points", "guidence"]))
    value = data.draw(VALUES)
    try:
        checked = getattr(generation_config, kind)({name: value})
    except ValueError as error:
        assert name in str(error) and len(str(error)) < 1000
    else:
        assert set(checked) <= {*checks}
        for key, given_value in checked.items():
            _means_something(key, given_value)


@BOUNDED
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "steps": st.integers(),
            "guidance": st.floats(),
            "guidance_interval": st.tuples(st.floats(), st.floats()),
            "shift": st.floats(),
            "solver": st.one_of(st.text(max_size=5), st.sampled_from(["euler", "heun"])),
        },
    )
)
def test_settings_of_runs_and_sweeps_are_checked_too(values):
    try:
        made = SamplingSettings(**values)
    except ValueError as error:
        assert any(name in str(error) for name in values)
    else:
        times = flow.time_grid(made.steps, made.shift)
        assert np.isfinite(times).all() and (np.diff(times) > 0).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guidance": math.nan}, "guidance is nan; it must be a number from 0 to 100"),
        ({"guidance": 1e30}, r"guidance is 1e\+30"),
        ({"guidance": -1}, "guidance is -1"),
        ({"shift": 0}, r"shift is 0; it must be a number from 0\.01 to 100"),
        ({"shift": math.nan}, "shift is nan"),
        ({"shift": -1.0}, "shift is -1"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"steps": 3.0}, r"steps is 3\.0"),
        ({"size": (0, 64)}, "size is 0"),
        ({"size": 64}, "size is"),
        ({"negative": ["a", "\udce9"]}, r"negative\[1\]: .*half of a surrogate pair"),
        ({"guidence": 3}, "unknown option 'guidence'; the options are seed, negative"),
    ],
)
def test_the_options_of_the_reports(options, words):
    with pytest.raises(ValueError, match=words):
        generation_config.sampling(options)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999", "x", ""])
def test_flags_take_finite_numbers(value):
    for parse in (parsing.finite, parsing.positive, parsing.interval, parsing.seed):
        with pytest.raises(argparse.ArgumentTypeError, match="is not"):
            parse(value)


@pytest.mark.parametrize("value", ["-1", str(2**64), "9" * 5000, "1.5"])
def test_a_seed_out_of_range_is_an_error_of_the_flag(value):
    with pytest.raises(argparse.ArgumentTypeError, match=r"2\*\*64 - 1"):
        parsing.seed(value)
    assert parsing.seed(str(2**64 - 1)) == 2**64 - 1


@pytest.mark.parametrize("task", TASKS)
@BOUNDED
@given(data=st.data())
def test_a_line_of_requests_is_a_request_or_a_named_error(tmp_path_factory, task, data):
    known = [*KEYS[task], "sed"]
    values = data.draw(st.dictionaries(st.sampled_from(known), JSON, max_size=4))
    if data.draw(st.booleans()):
        values[KEYS[task][0]] = data.draw(st.text(max_size=8))
    path = tmp_path_factory.getbasetemp() / f"{task}.jsonl"
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    try:
        (request,) = read_requests(path, task)
    except ValueError as error:
        assert str(error).startswith(f"{path}:1: ")
    else:
        assert request.where == f"{path}:1"
        assert request.seed is None or 0 <= request.seed < 2**64
        (request.text + "".join(request.media)).encode("utf-8")
        assert (values.get(KEYS[task][0]) is not None) or request.messages


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"prompt": "a", "seed": 18446744073709551616}', "'seed' is 18446744073709551616"),
        ('{"prompt": "a", "seed": -1}', "'seed' is -1"),
        ('{"prompt": "a", "seed": ' + "9" * 5000 + "}", "not JSON"),
        ('{"prompt": "a \\ud83d b"}', "half of a surrogate pair"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_the_lines_of_the_reports(tmp_path, line, words):
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{words}"):
        read_requests(tmp_path / "a.jsonl", "t2i")


def test_parts_of_a_request_name_files_next_to_it(tmp_path):
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "<image>?"}]
    line = {"messages": [{"role": "user", "content": content}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(line) + "\n")
    (request,) = read_requests(tmp_path / "a.jsonl", "chat")
    assert request.messages[0]["content"][0]["image"] == str(tmp_path / "a.png")
    assert request.messages[0]["content"][1] == content[1]
