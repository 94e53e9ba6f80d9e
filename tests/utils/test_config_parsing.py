import dataclasses

import pytest
from ml_collections import ConfigDict

from tuna_jax.utils.config_parsing import defaults, override, parse


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 1.0
    names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner = Inner()
    free: dict = dataclasses.field(default_factory=dict)


def test_nested_values_become_typed():
    values = ConfigDict(
        {"steps": 3, "inner": {"rate": 2, "names": ("a",)}, "free": {"x": {"y": 1}}}
    )
    parsed = parse(Outer, values.to_dict())
    assert parsed == Outer(steps=3, inner=Inner(2.0, ("a",)), free={"x": {"y": 1}})
    assert isinstance(parsed.inner.rate, float)
    assert type(parsed.free["x"]) is dict


def test_unknown_key_is_named_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown config key config\.inner\.rates; did you mean 'rate'"
    ):
        parse(Outer, {"steps": 3, "inner": {"rates": 2.0}})


def test_missing_key_is_named():
    with pytest.raises(ValueError, match=r"missing config key config\.steps"):
        parse(Outer, {})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 3.5}, r"config\.steps is 3\.5"),
        ({"steps": True}, r"config\.steps is True"),
        ({"steps": "3"}, r"config\.steps is '3'"),
        ({"steps": 3, "inner": 2.0}, r"config\.inner is 2\.0"),
        (
            {"steps": 3, "inner": {"names": "abc"}},
            r"config\.inner\.names is 'abc'",
        ),
    ],
)
def test_wrong_type_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        parse(Outer, values)


def test_defaults_are_the_keys_that_have_one():
    """An experiment file changes them, and they come back as they were."""
    assert defaults(Outer) == {"inner": {"rate": 1.0, "names": ()}, "free": {}}
    assert parse(Outer, {"steps": 2, **defaults(Outer)}) == Outer(steps=2)


def test_override_changes_only_what_is_given():
    base = Outer(steps=3, inner=Inner(5.0, ("a", "b")))
    changed = override(base, {"inner": {"names": ["c"]}}, "model")
    assert changed == Outer(steps=3, inner=Inner(5.0, ("c",)))
    assert override(base, {}) == base
    assert override(base, {"inner": Inner()}).inner == Inner()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"inner": {"rates": 1.0}}, r"unknown config key model\.inner\.rates; did you mean 'rate'"),
        ({"inner": {"rate": "fast"}}, r"model\.inner\.rate is 'fast'"),
        ({"step": 1}, r"unknown config key model\.step; did you mean 'steps'"),
    ],
)
def test_override_names_the_key(values, message):
    with pytest.raises(ValueError, match=message):
        override(Outer(steps=3), values, "model")
