#!/usr/bin/env bash
# Runs the tests on the newest releases of all dependencies that this Python takes, in an environment of its own.
#
#   tests/newest.sh                            the whole suite
#   tests/newest.sh tests/compat -x            any of pytest's arguments
#   PYTHON=python3.12 NEWEST=/tmp/newest tests/newest.sh
#
# PYTHON is the interpreter (default: python3), NEWEST the environment's folder (default: .cache/newest; an existing one
# is upgraded). The upper bounds of requirements.txt and pyproject.toml are ignored, since finding out what breaks beyond
# them is the purpose; lower bounds hold. PyTorch is not installed; the tests that need it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=${NEWEST:-.cache/newest}
"${PYTHON:-python3}" -m venv "$environment"
python="$environment/bin/python"

# Requirements of the package and of its tests, without upper bounds and without the package itself.
unbounded=$("$python" - <<'PYTHON_END'
import re
import tomllib
from pathlib import Path

extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
lines = Path("requirements.txt").read_text().splitlines()
for line in [*lines, *extras["dev"], *extras["gguf"], *extras["plan"]]:
    requirement = line.split("#")[0].strip()
    if requirement and not requirement.startswith("tuna_jax"):
        print(re.sub(r",?\s*(<=?|==)[^,;\s]+", "", requirement))
PYTHON_END
)
mapfile -t requirements <<<"$unbounded"
"$python" -m pip install --quiet --upgrade pip
"$python" -m pip install --quiet --upgrade "${requirements[@]}"
"$python" -m pip install --quiet --no-deps --editable .
"$python" -m pip list | grep -iE '^(jax|jaxlib|flax|optax|orbax|grain|numpy|scipy|libtpu|transformers|tokenizers) ' || true
exec "$python" -m pytest "$@"
