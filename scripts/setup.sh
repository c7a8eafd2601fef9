#!/usr/bin/env bash
# Makes .venv and installs mllm with everything it needs: vLLM for the GPU where there is one, else for the CPU.
# Skips what is done: a stamp in .venv remembers what it was made from. Variables:
#   PYTHON           interpreter, 3.11 or 3.12 (default: the first of python3, python3.12, python3.11 that fits)
#   TORCH_CPU_INDEX  where CPU builds of torch are looked for when pip's own configuration has none
set -euo pipefail
cd "$(dirname "$0")/.."

TORCH=2.13.0
TORCH_CPU_INDEX=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
LOG=.venv/setup.log
STAMP=.venv/setup.stamp

say() { printf 'setup: %s\n' "$*"; }
stop() { printf 'error: setup: %s\n' "$*" >&2; exit 1; }

# The end of the log without pip's remarks on its own configuration.
show_log() { grep -v '^WARNING: Location' "$LOG" | tail -n "${1:-15}" >&2 || true; }

# step LABEL COMMAND…: one line with the seconds it took; all output goes to the log.
step() {
    local label=$1 start=$SECONDS
    shift
    printf 'setup: %s … ' "$label"
    if "$@" >>"$LOG" 2>&1; then
        printf '%s s\n' $((SECONDS - start))
    else
        printf '%s (%s s)\n' "${ON_FAILURE:-failed}" $((SECONDS - start))
        return 1
    fi
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null; }

[ "$(uname -s)" = Linux ] || stop "vLLM needs Linux; elsewhere train and chat without it: pip install -e '.[dev]'"
if nvidia-smi -L >/dev/null 2>&1; then machine=gpu; else machine=cpu; fi
fingerprint="$machine $(cat pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)"
if [ -x .venv/bin/python ] && [ "$(cat "$STAMP" 2>/dev/null)" = "$fingerprint" ]; then
    exit 0
fi

if ! [ -x .venv/bin/python ]; then
    python=
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        if fits "$candidate"; then python=$candidate; break; fi
    done
    [ -n "$python" ] || stop "no Python 3.11 or 3.12 found: install one and name it, as in PYTHON=python3.12 make setup"
    "$python" -m venv .venv || stop "'$python -m venv' failed: install the package python3-venv of your system"
fi
fits .venv/bin/python || stop ".venv has another Python than 3.11 or 3.12: remove the folder .venv and run again"
: >"$LOG"
pip() { .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"; }

say "log in $LOG"
if [ $machine = cpu ]; then
    # The CPU build first and by name: else pip would take the CUDA build, gigabytes that nothing here can use.
    ON_FAILURE="none in pip's indexes" step "torch $TORCH for the CPU" pip install "torch==$TORCH+cpu" -c constraints.txt ||
        step "torch $TORCH for the CPU from PyTorch's own wheels" \
            pip install "torch==$TORCH+cpu" -c constraints.txt --extra-index-url "$TORCH_CPU_INDEX" ||
        { show_log 5; stop "no CPU build of torch $TORCH found: set TORCH_CPU_INDEX to an index that has one"; }
    extras=serve-cpu,dev
    unwanted=
else
    extras=serve,dev
    unwanted="torch!=$TORCH+cpu" # pip would prefer it over the CUDA build wherever it finds both
fi
step "mllm with [$extras]" pip install -e ".[$extras]" $unwanted -c constraints.txt ||
    { show_log; stop "installing failed, the reason is above and in $LOG"; }

# vLLM pulls these in; a build that does not fit this torch breaks `import transformers`, and we don't need them.
for module in torchvision torchaudio torchcodec; do
    if pip show -q "$module" >/dev/null 2>&1 && ! .venv/bin/python -c "import $module" >>"$LOG" 2>&1; then
        step "removing $module, which does not load here" pip uninstall -y "$module"
    fi
done

check='import torch, vllm, transformers
from transformers import LlamaForCausalLM, TimesformerModel, WhisperModel
import mllm.command.cli
print(f"READY torch {torch.__version__}, transformers {transformers.__version__}, vllm {vllm.__version__}")'
step "checking that it loads" .venv/bin/python -c "$check" ||
    { show_log; stop "the packages do not load together, the reason is above and in $LOG"; }
say "ready: $(sed -n 's/^READY //p' "$LOG" | tail -n 1), for the $machine; try: make demo"
echo "$fingerprint" >"$STAMP"
