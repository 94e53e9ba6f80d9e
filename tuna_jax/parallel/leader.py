"""Process 0 leads: it runs a command of inference, and the other processes compute along with it.

Such a command reads requests, plans, and writes files, which must happen once; only its programs run on the devices of
all processes. So process 0 runs the command and the others wait in `together`. A function that is marked with
`on_all_processes` is first sent to them, with its arguments, and then called by all: every process runs the same
programs on the same arrays in the same order. What process 0 read from a file system is what all compute with.

    @on_all_processes
    def generate(model, prompts, ...): ...

    status = together(lambda: command())   # on every process; each returns what process 0's call returned

A model that only process 0 has loaded (its `shared` is None) computes only on that process.

Arguments are pickled and travel through JAX's coordination service, so a message takes milliseconds, and a process
waits as long as process 0 is alive. Objects that every process holds its own part of (a model's arrays) are sent by
number, see `Shared`.

If the function raises on process 0, so does the call, and the command decides what happens; if it raises on another
process only, the call raises `ProcessError`, which names the process. For that the function calls `agree` when all that
can fail on one process is done, before the first operation that the devices perform together. A process that fails
later cannot be waited for, since the others are inside that operation: after `GRACE` seconds the run ends, and the
launcher starts it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import pickle
import signal
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax

from tuna_jax.compat import jax_internals
from tuna_jax.parallel import distributed

GRACE = 120
"""Seconds that a process which failed, or whose call is finished after a failure, waits for the others."""
PATIENCE = 3600
"""Seconds that a call may take longer on one process than on another."""

_PART = 1 << 20  # Bytes per value of the coordination service.
_POLL = 60  # Seconds of one wait for a message.

P = ParamSpec("P")
T = TypeVar("T")


class ProcessError(OSError):
    """A call failed on another process."""


class Shared:
    """The number of an object that every process holds its own part of.

    The other processes drop theirs when process 0 has dropped its last reference to this.
    """

    def __init__(self, number: int):
        self.number = number
        weakref.finalize(self, _forgotten.append, number)


@dataclasses.dataclass
class _Call:
    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    forgotten: list[int]
    shares: bool


@dataclasses.dataclass
class _End:
    result: Any = None
    error: str = ""


@dataclasses.dataclass
class _State:
    leading: bool = False
    calling: bool = False
    agreed: bool = False
    read_by_all: bool = False  # The last message: all have finished its call.
    messages: int = 0
    adopted: int = 0
    objects: dict[int, Any] = dataclasses.field(default_factory=dict)


_state = _State()
_forgotten: list[int] = []


def is_leading() -> bool:
    """Whether this process runs a command that other processes compute along with, outside of a common call."""
    return _state.leading and not _state.calling


def together(function: Callable[[], T]) -> T:
    """Runs `function` on process 0 while the others compute along; all processes must call it.

    Returns:
      What `function` returned on process 0, on every process. A single process just calls it.

    Raises:
      Exception: what `function` raised, on process 0.
      ProcessError: on the others, that it raised.
    """
    if jax.process_count() == 1 or _state.leading:
        return function()
    if jax.process_index() != 0:
        return _follow()
    _state.leading = True
    end = _End(error="process 0 ended")
    try:
        result = function()
        end = _End(result)
        return result
    except BaseException as error:
        end = _End(error=f"{type(error).__name__}: {error}")
        raise
    finally:
        _state.leading = False
        _send(end)


def on_all_processes(function: Callable[P, T]) -> Callable[P, T]:
    """Marks a module's function as one that all processes call when the leading process does."""
    return _marked(function, shares=False)


def on_all_processes_shared(function: Callable[P, T]) -> Callable[P, T]:
    """The same for a function whose result every process keeps its own part of.

    The result is a dataclass with a field `shared`, which is set to its `Shared`.
    """
    return _marked(function, shares=True)


def agree() -> None:
    """Waits until all processes of a call have come here, or one has failed. Only the first time in a call.

    Raises:
      ProcessError: another process has failed; the call ends on all.
    """
    if not _state.calling or _state.agreed:
        return
    _state.agreed = True
    distributed.wait_for_all(PATIENCE)
    _raise_errors()


def adopt(value: Any) -> Any:
    """Makes an object that every process has made already, outside `together`, known by number. All must call it.

    Returns:
      A copy of the dataclass with its field `shared` set.
    """
    if jax.process_count() == 1:
        return value
    _state.adopted += 1
    return _register(value, -_state.adopted)


def shared_object(number: int) -> Any:
    """This process's part of a shared object."""
    return _state.objects[number]


def _marked(function: Callable[P, T], *, shares: bool) -> Callable[P, T]:
    name = f"{function.__module__}:{function.__qualname__}"

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        is_local = bool(arguments) and getattr(arguments[0], "shared", _state) is None
        if not is_leading() or is_local:
            return function(*arguments, **options)
        forgotten, _forgotten[:] = list(_forgotten), []
        _send(_Call(name, arguments, options, forgotten, shares))
        return _run(function, arguments, options, shares)

    return call


def _run(
    function: Callable[..., T], arguments: tuple[Any, ...], options: dict[str, Any], shares: bool
) -> T:
    """Calls a function on this process of several, and waits for the others."""
    error, result = None, None
    _state.calling, _state.agreed = True, False
    try:
        result = function(*arguments, **options)
        agree()
        if shares:
            result = _register(result, _state.messages)
    except Exception as raised:
        error = raised
        text = f"process {jax.process_index()}: {type(raised).__name__}: {raised}"
        jax_internals.set_value(f"{_errors()}{jax.process_index()}", text.encode())
        if not _state.agreed:  # The others wait in `agree`, or have failed, too.
            distributed.wait_for_all(PATIENCE)
            _state.agreed = True
    finally:
        _state.calling = False
    try:
        distributed.wait_for_all(PATIENCE if error is None else GRACE)
    except RuntimeError:
        distributed.end(
            f"process {jax.process_index()}: the other processes did not finish the call that "
            f"{'it has finished' if error is None else f'failed here with {type(error).__name__}: {error}'}; "
            f"the run ends, and the same command resumes it"
        )
    _state.read_by_all = True
    if error is not None:
        raise error
    _raise_errors()
    return result  # pyright: ignore[reportReturnType]


def _raise_errors() -> None:
    if failed := jax_internals.values_under(_errors()):
        raise ProcessError(failed[0].decode())


def _errors() -> str:
    return f"{_key(_state.messages)}/errors/"


def _follow() -> Any:
    """Waits for messages of process 0, and calls what they name, until it has finished."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Process 0 decides when all end.
    try:
        while True:
            message = _receive()
            if isinstance(message, _End):
                if message.error:
                    raise ProcessError(f"process 0: {message.error}")
                return message.result
            for number in message.forgotten:
                _state.objects.pop(number, None)
            module, _, name = message.function.partition(":")
            function = getattr(importlib.import_module(module), name)
            with contextlib.suppress(Exception):  # Process 0 knows of an error, and decides.
                _run(function.__wrapped__, message.arguments, message.options, message.shares)
            del message
    finally:
        signal.signal(signal.SIGINT, interrupt)


def _register(value: Any, number: int) -> Any:
    if jax.process_index() == 0:
        return dataclasses.replace(value, shared=Shared(number))
    _state.objects[number] = value
    return value


class _Pickler(pickle.Pickler):
    """Pickles a shared object as its number and the fields that it says are its own, `shared_fields`."""

    def reducer_override(self, obj: Any) -> Any:
        shared = getattr(obj, "shared", None)
        if not isinstance(shared, Shared):
            return NotImplemented
        fields = {name: getattr(obj, name) for name in type(obj).shared_fields}
        return _restored, (shared.number, fields)


def _restored(number: int, fields: dict[str, Any]) -> Any:
    return dataclasses.replace(shared_object(number), **fields)


def _key(number: int) -> str:
    return f"tuna_jax/leader/{number}"


def _send(message: _Call | _End) -> None:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(message)
    content = buffer.getvalue()
    if _state.read_by_all:
        jax_internals.delete_values(f"{_key(_state.messages)}/")
    _state.read_by_all = False
    _state.messages += 1
    parts = [content[start : start + _PART] for start in range(0, len(content), _PART)]
    for index, part in enumerate(parts):
        jax_internals.set_value(f"{_key(_state.messages)}/parts/{index}", part)
    jax_internals.set_value(f"{_key(_state.messages)}/count", str(len(parts)).encode())


def _receive() -> Any:
    _state.messages += 1
    key = _key(_state.messages)
    while (count := jax_internals.wait_for_value(f"{key}/count", _POLL)) is None:
        pass
    parts = [jax_internals.wait_for_value(f"{key}/parts/{i}", _POLL) for i in range(int(count))]
    return pickle.loads(b"".join(part or b"" for part in parts))
