"""Checks by reading, without importing: is every name that tuna_jax uses of its libraries in a newer release of them?

    python tests/compat/inspect_wheels.py                                 jax 0.11 and the newest of the others
    python tests/compat/inspect_wheels.py "jax>=0.12" flax optax          other releases
    python tests/compat/inspect_wheels.py --python 3.13

Wheels are downloaded for another Python than the one that runs this, so releases that do not install here can be
checked too. Every import and every dotted name in tuna_jax is looked up in the wheel's source, through re-exports, and
every call is compared with the parameters of what it calls. What the source does not show (a function made by another
function, a class of a compiled extension) is counted and not checked. Exits with 1 if a name or a parameter is missing.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RELEASES = ("jax>=0.11,<0.12", "flax", "optax", "orbax-checkpoint", "grain")
LIBRARIES = ("jax", "flax", "optax", "orbax", "grain")
"""Top-level packages whose names are checked."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclasses.dataclass(frozen=True)
class Use:
    """A name that tuna_jax uses: its parts from the top-level package on, where, and the call if it is called."""

    name: tuple[str, ...]
    where: str
    call: ast.Call | None


@dataclasses.dataclass(frozen=True)
class Found:
    """Where a name leads: a module's file, a definition in a file, or a value whose definition the source hides."""

    file: Path | None = None
    node: Definition | None = None
    owner: ast.ClassDef | None = None
    reason: str = ""


class Missing(Exception):
    """A name that the wheel does not have."""


class Package:
    """The unpacked wheels of all libraries, as source."""

    def __init__(self, folder: Path):
        self.folder = folder

    def module(self, dotted: tuple[str, ...]) -> Path | None:
        """The file of a module; a namespace package's folder; None: there is no such module."""
        path = self.folder.joinpath(*dotted)
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
        return path if path.is_dir() else None

    @functools.cache  # noqa: B019 - one object for the whole run
    def names(self, file: Path) -> dict[str, list[ast.AST]]:
        """What a module binds at its top level, also inside `if`, `try` and `with`; the last binding comes last."""
        bound: dict[str, list[ast.AST]] = {}
        if file.is_dir():
            return bound

        def visit(statements: list[ast.stmt]) -> None:
            for statement in statements:
                for name in _bound(statement):
                    bound.setdefault(name, []).append(statement)
                for field in ("body", "orelse", "finalbody"):
                    if not isinstance(statement, Definition):
                        visit(getattr(statement, field, []))
                for handler in getattr(statement, "handlers", []):
                    visit(handler.body)

        visit(ast.parse(_older(file.read_text(encoding="utf-8")), str(file)).body)
        return bound

    def find(self, dotted: tuple[str, ...], depth: int = 0) -> Found:
        """Follows a dotted name from its top-level package; raises Missing."""
        if depth > 30:
            return Found(reason="a circle of imports")
        if dotted[0] not in LIBRARIES:
            return Found(reason=f"defined in {dotted[0]}")
        found = Found(file=self.folder / dotted[0])
        for index in range(1, len(dotted) + 1):
            if index == 1:
                file = self.module(dotted[:1])
                if file is None:
                    raise Missing(dotted[0])
                found = Found(file=file)
                continue
            found = self._member(found, dotted[index - 1], dotted[:index], depth)
            if found.reason:
                return found
        return found

    def _member(self, inside: Found, name: str, dotted: tuple[str, ...], depth: int) -> Found:
        if isinstance(inside.node, ast.ClassDef):
            return self._attribute(inside, name, dotted, depth)
        if inside.node is not None:
            return Found(reason=f"an attribute of the function {dotted[-2]}")
        assert inside.file is not None
        bindings = self.names(inside.file).get(name)
        if bindings is None:
            submodule = self.module((*self._dotted(inside.file), name))
            if submodule is not None:
                return Found(file=submodule)
            for statement in self.names(inside.file).get("*", []):
                assert isinstance(statement, ast.ImportFrom)
                source = _source(statement, self._dotted(inside.file), inside.file)
                try:
                    return self.find((*source, name), depth + 1)
                except Missing:
                    continue
            raise Missing(".".join(dotted))
        definitions = [b for b in bindings if isinstance(b, Definition)]
        if definitions:
            return Found(inside.file, definitions[-1])
        binding = bindings[-1]
        if isinstance(binding, ast.ImportFrom):
            alias = next(a for a in binding.names if (a.asname or a.name) == name)
            source = _source(binding, self._dotted(inside.file), inside.file)
            submodule = self.module((*source, alias.name))
            if source == self._dotted(inside.file) and submodule is not None:
                return Found(file=submodule)  # a package that imports a module of its own
            return self.find((*source, alias.name), depth + 1)
        if isinstance(binding, ast.Import):
            alias = next(a for a in binding.names if (a.asname or a.name.split(".")[0]) == name)
            parts = tuple(alias.name.split("."))
            return self.find(parts if alias.asname else parts[:1], depth + 1)
        if isinstance(binding, ast.Assign) and (chain := _chain(binding.value)):
            # `name = other.name`: follow it where `other` is known.
            try:
                return self.find((*self._dotted(inside.file), *chain), depth + 1)
            except Missing:
                pass
        return Found(reason="a value made by an expression")

    def _attribute(self, inside: Found, name: str, dotted: tuple[str, ...], depth: int) -> Found:
        """A member of a class, or of one of its bases."""
        assert isinstance(inside.node, ast.ClassDef) and inside.file is not None
        for statement in inside.node.body[::-1]:
            if name in _bound(statement):
                node = statement if isinstance(statement, Definition) else None
                reason = "" if node is not None else "a class's value"
                return Found(inside.file, node, inside.node, reason)
        for base in inside.node.bases:
            chain = _chain(base.value if isinstance(base, ast.Subscript) else base)
            if chain is None:
                return Found(reason="a base class made by an expression")
            try:
                parent = self.find((*self._dotted(inside.file), *chain), depth + 1)
            except Missing:
                parent = Found(reason="a base class from elsewhere")
            if parent.reason or not isinstance(parent.node, ast.ClassDef):
                return Found(reason="a base class from elsewhere")
            try:
                return self._attribute(parent, name, dotted, depth + 1)
            except Missing:
                continue
        raise Missing(".".join(dotted))

    def _dotted(self, file: Path) -> tuple[str, ...]:
        parts = file.relative_to(self.folder).with_suffix("").parts
        return parts[:-1] if parts[-1] == "__init__" else parts


_TYPE_PARAMETERS = re.compile(
    r"^(\s*(?:async )?(?:def|class) \w+)\[(?:[^\[\]]|\[[^\[\]]*\])*\]", re.M
)
_TYPE_ALIAS = re.compile(r"^type (\w+)(?:\[[^\]]*\])? = ", re.M)


def _older(source: str) -> str:
    """Source without the type parameters of Python 3.12, so that an older Python parses it."""
    return _TYPE_ALIAS.sub(r"\1 = ", _TYPE_PARAMETERS.sub(r"\1", source))


def _bound(statement: ast.AST) -> list[str]:
    """Names that a statement binds; '*' for a star import."""
    if isinstance(statement, Definition):
        return [statement.name]
    if isinstance(statement, ast.ImportFrom):
        return [alias.asname or alias.name for alias in statement.names]
    if isinstance(statement, ast.Import):
        return [alias.asname or alias.name.split(".")[0] for alias in statement.names]
    targets: list[ast.expr] = []
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign):
        targets = [statement.target]
    return [
        leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)
    ]


def _source(statement: ast.ImportFrom, module: tuple[str, ...], file: Path) -> tuple[str, ...]:
    """The module that `from ... import` names, in full."""
    named = tuple(statement.module.split(".")) if statement.module else ()
    if not statement.level:
        return named
    package = module if file.name == "__init__.py" else module[:-1]
    return (*package[: len(package) - statement.level + 1], *named)


def _chain(node: ast.AST) -> tuple[str, ...] | None:
    """('a', 'b', 'c') of `a.b.c`; None of anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (inner := _chain(node.value)):
        return (*inner, node.attr)
    return None


def uses(file: Path) -> Iterator[Use]:
    """All names of the libraries that a file uses, the longest form of each."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    where = lambda node: f"{file.name}:{node.lineno}"
    aliases: dict[str, tuple[str, ...]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = tuple(alias.name.split("."))
                if parts[0] in LIBRARIES:
                    aliases[alias.asname or parts[0]] = parts if alias.asname else parts[:1]
                    yield Use(parts, where(node), None)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            parts = tuple(node.module.split("."))
            if parts[0] in LIBRARIES:
                for alias in node.names:
                    aliases[alias.asname or alias.name] = (*parts, alias.name)
                    yield Use((*parts, alias.name), where(node), None)
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and id(node) not in inner:
            chain = _chain(node)
            if chain and chain[0] in aliases:
                yield Use((*aliases[chain[0]], *chain[1:]), where(node), called.get(id(node)))


def mismatch(package: Package, found: Found, call: ast.Call) -> str | None:
    """Why a call does not fit what it calls; '' if it does; None if the source does not say."""
    arguments = _parameters(package, found)
    if arguments is None:
        return None
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    named = {a.arg for a in (*arguments.args, *arguments.kwonlyargs)}
    spread = any(isinstance(a, ast.Starred) for a in call.args)
    if not spread and len(call.args) > len(positional) and arguments.vararg is None:
        return f"{len(call.args)} positional arguments, and it takes {len(positional)}"
    keywords = [k.arg for k in call.keywords if k.arg]
    unknown = [k for k in keywords if k not in named] if arguments.kwarg is None else []
    if unknown:
        return f"no parameter {', '.join(unknown)}"
    if spread or any(k.arg is None for k in call.keywords):
        return ""
    required = positional[: len(positional) - len(arguments.defaults)][len(call.args) :]
    required += [
        a.arg
        for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if default is None
    ]
    missing = [name for name in required if name not in keywords]
    return f"not passed: {', '.join(missing)}" if missing else ""


def _parameters(package: Package, found: Found) -> ast.arguments | None:
    """What a function, method or class is called with, without `self` or `cls`."""
    node = found.node
    if node is None:
        return None
    if isinstance(node, ast.ClassDef):
        if node.keywords:  # a metaclass may make the call anything
            return None
        fields = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
        if fields or [ast.unparse(base) for base in node.bases] == ["NamedTuple"]:
            return _fields(node)
        for name in ("__init__", "__new__"):
            try:
                made = package._attribute(found, name, (node.name, name), 0)
            except Missing:
                continue
            return (
                _without_first(made.node.args) if isinstance(made.node, ast.FunctionDef) else None
            )
        return None
    decorators = {ast.unparse(d).split("(")[0].split(".")[-1] for d in node.decorator_list}
    if found.owner is not None and "classmethod" in decorators:
        return _without_first(node.args)
    return None if "property" in decorators else node.args


def _fields(node: ast.ClassDef) -> ast.arguments | None:
    """The constructor of a dataclass or named tuple without bases of its own."""
    if any(isinstance(s, ast.FunctionDef) and s.name == "__init__" for s in node.body):
        made = next(s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__")
        return _without_first(made.args)
    if node.bases and [ast.unparse(base) for base in node.bases] != ["NamedTuple"]:
        return None
    fields = [
        s for s in node.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
    ]
    fields = [s for s in fields if "ClassVar" not in ast.unparse(s.annotation)]
    arguments: Any = ast.arguments([], [], None, [], [], None, [])
    arguments.args = [ast.arg(s.target.id) for s in fields]  # pyright: ignore[reportAttributeAccessIssue]
    arguments.defaults = [s.value for s in fields if s.value is not None]
    return arguments


def _without_first(arguments: ast.arguments) -> ast.arguments:
    positional = (*arguments.posonlyargs, *arguments.args)
    rest = list(positional[1:])
    defaults = arguments.defaults[-len(rest) :] if rest else []
    return ast.arguments(
        [], rest, arguments.vararg, arguments.kwonlyargs, arguments.kw_defaults, arguments.kwarg, defaults
    )  # fmt: skip


def check(package: Package, caller: Path = ROOT / "tuna_jax") -> int:
    """Prints what `caller` uses and the package lacks, and what was checked; returns the number of problems."""
    names: set[tuple[str, ...]] = set()
    hidden: set[tuple[str, ...]] = set()
    wrong: dict[str, list[str]] = {}
    calls = checked = 0
    for file in sorted(caller.rglob("*.py")):
        for use in uses(file):
            names.add(use.name)
            name = ".".join(use.name)
            try:
                found = package.find(use.name)
            except Missing as error:
                wrong.setdefault(f"{name}: there is no {error}", []).append(use.where)
                continue
            if found.reason:
                hidden.add(use.name)
            if use.call is None:
                continue
            calls += 1
            why = mismatch(package, found, use.call)
            checked += why is not None
            if why:
                wrong.setdefault(f"{name}: {why}", []).append(use.where)
    for message, places in wrong.items():
        print(f"MISSING {message}   ({', '.join(places)})")
    print(
        f"{len(names)} names, of which {len(hidden)} lead to values that the source does not show; "
        f"{calls} calls, of which {checked} were compared with their parameters; {len(wrong)} problems"
    )
    return len(wrong)


def main() -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "releases", nargs="*", default=RELEASES, help="requirements; default: %(default)s"
    )
    parser.add_argument("--python", default="3.12", help="the Python whose wheels are taken")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheels, source = Path(folder, "wheels"), Path(folder, "source")
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
             f"--python-version={chosen.python}", f"--dest={wheels}", *chosen.releases],
            check=True,
        )  # fmt: skip
        for wheel in sorted(wheels.glob("*.whl")):
            print(wheel.name)
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(source)
        return int(check(Package(source)) > 0)


if __name__ == "__main__":
    sys.exit(main())
