#!/usr/bin/env bash
# Sets up the peers from nothing, each in a virtual environment of its own:  setup.sh PEERS_DIR
#
# Versions are pinned so that two runs compare the same peers. torch comes first and is held where it is: without
# that, pip may bring another build, and a peer would be measured on another BLAS than ours.
#   PYTHON     the interpreter (default: python3)
#   TORCH_INDEX  where a CPU build of torch lies, if not on your package index
#                (for example https://download.pytorch.org/whl/cpu)
set -euo pipefail

peers=${1:?usage: setup.sh PEERS_DIR}
python=${PYTHON:-python3}
torch="torch==2.13.0"

set_up() { # name, requirement
    local home="$peers/$1" constraint="$peers/constraint.txt"
    echo "$torch" > "$constraint"
    "$python" -m venv --clear "$home"
    "$home/bin/python" -m pip install --quiet ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$torch"
    "$home/bin/python" -m pip install --quiet --constraint "$constraint" "$2"
    "$home/bin/python" -m pip freeze > "$peers/$1.txt"
}

mkdir -p "$peers"
set_up mergekit "mergekit==0.1.5"
set_up modeldelta "modeldelta==0.4.4"

"$peers/mergekit/bin/mergekit-extract-lora" --help > /dev/null
"$peers/modeldelta/bin/modeldelta" --help > /dev/null
echo "ready in $peers: mergekit-extract-lora, modeldelta"
