"""The inspection of wheels, on a small library whose names are followed without importing it."""

import pytest

from tests.compat.inspect_wheels import Package, check

LIBRARY = {
    "__init__.py": "from jax import inner\nfrom jax.inner import function as renamed\nfrom .star import *\n",
    "inner.py": (
        "import numpy as np\n"
        "def function(a, b=1, *, c): ...\n"
        "class Thing[T]:\n"
        "    def __init__(self, size): ...\n"
        "    @classmethod\n"
        "    def make(cls, size): ...\n"
        "if True:\n"
        "    def conditional(): ...\n"
    ),
    "star.py": "import dataclasses\n@dataclasses.dataclass\nclass Record:\n    first: int\n    second: int = 0\n",
}
FITS = [
    "jax.renamed(1, 2, c=3)",
    "jax.renamed(*x, **y)",
    "jax.inner.Thing(4)",
    "jax.inner.Thing.make(size=4)",
    "jax.inner.conditional()",
    "jax.Record(1, second=2)",
    "jax.inner.np.zeros(3)",
]
DOES_NOT_FIT = {
    "jax.gone": "there is no jax.gone",
    "jax.inner.Thing.gone()": "there is no jax.inner.Thing.gone",
    "jax.renamed(1)": "not passed: c",
    "jax.renamed(1, 2, 3, c=4)": "3 positional arguments",
    "jax.inner.function(1, c=2, d=3)": "no parameter d",
    "jax.inner.Thing(width=4)": "no parameter width",
    "jax.Record(1, third=2)": "no parameter third",
}


def problems(tmp_path, code: str) -> int:
    for name, text in LIBRARY.items():
        (tmp_path / "source/jax").mkdir(parents=True, exist_ok=True)
        (tmp_path / "source/jax" / name).write_text(text)
    (tmp_path / "caller").mkdir()
    (tmp_path / "caller/file.py").write_text(f"import jax\n{code}\n")
    return check(Package(tmp_path / "source"), tmp_path / "caller")


@pytest.mark.parametrize("code", FITS)
def test_what_is_there_is_found(tmp_path, capsys, code):
    assert problems(tmp_path, code) == 0, capsys.readouterr().out


@pytest.mark.parametrize(("code", "message"), DOES_NOT_FIT.items())
def test_what_is_missing_is_named(tmp_path, capsys, code, message):
    assert problems(tmp_path, code) == 1
    assert message in capsys.readouterr().out
