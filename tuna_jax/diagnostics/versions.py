"""Check `versions`: what is installed fits what the package requires, and is the same on all hosts."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from tuna_jax.compat import grain_internals, hlo_text, jax_internals
from tuna_jax.diagnostics.context import Context
from tuna_jax.diagnostics.finding import FAIL, PASS, Finding, joined
from tuna_jax.parallel import agreement
from tuna_jax.utils.text_files import read_text, split_lines

WRITTEN_AGAINST = {
    "jax": jax_internals.VERSION,
    "grain": grain_internals.VERSION,
    "libtpu": hlo_text.VERSION,
}
"""The versions that `compat/` was written against; others may work, and its tests say whether they do."""
_SHOWN = ("jax", "jaxlib", "libtpu", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def versions(context: Context) -> Finding:
    """Requirements on this host, and the same libraries and code on all."""
    own = installed([requirement.name for requirement in requirements()])
    each = context.processes.gather({"libraries": own, "code": _code()})
    fits = requirement_finding(own, requirements())
    differs = difference_finding(each, context.processes.names)
    if context.processes.index > 0 and fits.result == PASS:
        return differs  # Process 0 lists the versions.
    return joined([fits, differs])


def requirements() -> list[Requirement]:
    """What the package requires to run: of the installed package, otherwise of the clone's requirements.txt.

    Raises:
      FileNotFoundError: neither exists.
    """
    file = Path(__file__).parents[2] / "requirements.txt"
    if file.is_file():
        lines = [line.partition("#")[0].strip() for line in split_lines(read_text(file))]
    else:
        try:
            lines = importlib.metadata.requires("tuna_jax") or []
        except importlib.metadata.PackageNotFoundError:
            raise FileNotFoundError(
                f"tuna_jax is not installed, and there is no {file}; pip install -e . in the clone"
            ) from None
    parsed = [Requirement(line) for line in lines if line]
    return [each for each in parsed if not each.marker or each.marker.evaluate({"extra": ""})]


def installed(names: Sequence[str]) -> dict[str, str]:
    """Versions by name; '' if a library is missing. Python, jaxlib and libtpu are there too."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys([*names, *_SHOWN]):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def requirement_finding(found: Mapping[str, str], required: Sequence[Requirement]) -> Finding:
    """Compares versions with the bounds.

    Args:
      found: as from `installed`.
      required: of the package.
    """
    wrong = [
        f"{each.name} {found.get(each.name) or 'is missing'}, required {each.specifier or 'any'}"
        for each in required
        if not found.get(each.name)
        or not each.specifier.contains(found[each.name], prereleases=True)
    ]
    if found["jax"] and found["jaxlib"] != found["jax"]:
        wrong.append(f"jax {found['jax']} with jaxlib {found['jaxlib'] or 'missing'}")
    known = ", ".join(f"{name} {found[name]}" for name in ("python", *_SHOWN) if found.get(name))
    other = [
        f"{name} {version}"
        for name, version in WRITTEN_AGAINST.items()
        if found.get(name) and found[name] != version
    ]
    notes = f"\ntuna_jax/compat was written against {', '.join(other)}" if other else ""
    return Finding(
        result=FAIL if wrong else PASS,
        measured="\n".join([known + notes, *wrong]),
        mend="pip install -c constraints.txt -e . in the clone" if wrong else "",
        numbers={"versions": dict(found)},
    )


def difference_finding(each: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Finding:
    """Names the processes whose libraries or source files differ from those of process 0.

    Args:
      each: by process 'libraries' (version by name) and 'code' (hash by file).
      names: of the processes.
    """
    differ = [
        f"{name}: {text}"
        for name, facts in zip(names[1:], each[1:], strict=True)
        if (text := agreement.difference(facts, each[0]))
    ]
    if differ:
        mend = "install the same code and versions on all hosts: the same image, or the same clone and constraints.txt"
        return Finding(result=FAIL, measured="\n".join(differ), mend=mend)
    if len(each) == 1:
        return Finding(result=PASS, measured="")
    return Finding(result=PASS, measured=f"the same code and versions on {len(each)} processes")


def _code() -> dict[str, str]:
    return {name: value for name, value in agreement.code().items() if name.endswith(".py")}
