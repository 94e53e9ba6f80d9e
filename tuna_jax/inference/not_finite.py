"""Results that are not finite: an error that names them, instead of a black image or `!!!!!`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

_CAUSE = (
    "the model computed NaN or infinity; `tuna-jax convert inspect` finds weights that are not finite, and "
    "compute_dtype='float32' rules out an overflow"
)


class NotFiniteError(ValueError):
    """Some rows of a call have no result, because the model computed NaN or infinity for them.

    Attributes:
      rows: the rows without a result.
      results: the results of all rows; those of `rows` mean nothing.
    """

    def __init__(self, message: str, rows: Sequence[int] = (), results: Any = None):
        super().__init__(message)
        self.rows, self.results = tuple(rows), results

    @classmethod
    def of(cls, what: str) -> NotFiniteError:
        """The error of a single result; `what` is it, such as 'answer'."""
        return cls(f"no finite {what}: {_CAUSE}")

    @classmethod
    def of_rows(
        cls, what: str, prompts: Sequence[str], rows: Sequence[int], results: Any
    ) -> NotFiniteError:
        """The error of several rows.

        Args:
          what: what a row is, such as 'image'.
          prompts: the prompts of all rows.
          rows: the rows without a result.
          results: the results of all rows.
        """
        named = ", ".join(f"{row} ({_short(prompts[row])})" for row in rows[:3])
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        return cls(f"no finite {what} for row {named}{more}: {_CAUSE}", rows, results)


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else prompt[:57] + "...")


def or_warn(generate: Callable[[], Any], where: str) -> Any:
    """The results of a call, with a warning if some of them are not finite: a training run continues without them."""
    try:
        return generate()
    except NotFiniteError as error:
        warnings.warn(f"{where}: {error}", stacklevel=2)
        return error.results
