"""Requests that fail individually: one bad file or one result that is not finite does not end a list."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tuna_jax.inference.not_finite import NotFiniteError
from tuna_jax.inference.requests import Request

OnFailure = Callable[[int, Exception], object]
"""(index of a request, why it has no result); the others go on."""


def name_of(requests: Sequence[Request], index: int) -> str:
    """How messages name a request: its file and line, or its number and text."""
    request = requests[index]
    return request.where or f"request {index} ({request.text[:60]!r})"


@contextlib.contextmanager
def one_request(
    requests: Sequence[Request], index: int, on_failure: OnFailure | None
) -> Iterator[None]:
    """Errors of input within it are those of one request, and name it; without `on_failure` they are raised."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = f"{name_of(requests, index)}: {error}"
        if on_failure is not None:
            on_failure(index, ValueError(text))
        elif isinstance(error, FileNotFoundError):
            raise FileNotFoundError(text) from error
        else:
            raise ValueError(text) from error


def finite_results(
    requests: Sequence[Request],
    group: Sequence[int],
    call: Callable[[], Any],
    on_failure: OnFailure | None,
) -> dict[int, Any]:
    """The results of a call for a group of requests, by index, without those that are not finite.

    Args:
      requests: all requests.
      group: the indices of those that share the call.
      call: returns a result for each of the group.
      on_failure: called for each that is not finite; None raises NotFiniteError.
    """
    try:
        results, lost = call(), ()
    except NotFiniteError as error:
        if on_failure is None:
            raise
        results, lost = error.results, error.rows
        for row in lost:
            text = f"{name_of(requests, group[row])}: {NotFiniteError.of('result')}"
            on_failure(group[row], ValueError(text))
    return {index: results[row] for row, index in enumerate(group) if row not in lost}
