"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from tuna_jax.serving.rows import Failed

_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}
_TYPES |= {429: "rate_limit_error", 503: "service_unavailable"}
_OF_KIND = {"timeout": 504, "shutdown": 503}


class ApiError(Exception):
    """What is wrong with a request, for its sender.

    Attributes:
      status: HTTP status.
      message: one line; it says what would be right.
      param: the field that is wrong, if it is one.
      code: a word that programs can rely on.
      headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        usual = "invalid_request_error" if self.status < 500 else "server_error"
        kind = _TYPES.get(self.status, usual)
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """The response."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A field with a value that cannot be served."""
    return ApiError(400, message, param, code)


def of_row(failed: Failed) -> ApiError:
    """The error of a request one of whose results failed."""
    return ApiError(_OF_KIND.get(failed.kind, 500), failed.message, None, failed.kind)


def of_validation(error: ValidationError) -> ApiError:
    """The error of a body that is not as its schema says; values of the request are not in it."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Names of union branches, which pydantic puts between, are no fields.
    path = [part for part in first["loc"] if isinstance(part, int) or part.islower()]
    name = ""
    for part in path:
        name += f"[{part}]" if isinstance(part, int) else f".{part}" if name else part
    name = name[:120]
    if first["type"] == "extra_forbidden":
        return invalid(name, f"unknown parameter {name!r}", "unknown_parameter")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    return invalid(name or None, f"{name}: {first['msg']}", code)
