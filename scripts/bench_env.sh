#!/usr/bin/env bash
# An environment of its own for the peers that bench_step.py and bench_bits.py measure against; none is a dependency of bitsback.
#
#   scripts/bench_env.sh [DIR]                          default .bench_env; may be run again
#   DIR/bin/python scripts/bench_step.py --net mlp
#
# Versions are pinned. torch comes first and at exactly one version: some peers would pull torchvision and, with it, another torch
# with gigabytes of CUDA, so they come with --no-deps, and the little that they import comes by name.
set -euo pipefail
cd "$(dirname "$0")/.."
DIR="${1:-.bench_env}"
PYTHON="${PYTHON:-python3}"

[ -x "$DIR/bin/python" ] || "$PYTHON" -m venv "$DIR"
echo '*' > "$DIR/.gitignore"
install() { "$DIR/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "$@"; }

install torch==2.13.0
install numpy --editable .
install pyro-ppl==1.9.2 scikit-learn matplotlib # bayesian-torch imports scikit-learn; matplotlib draws the figures
install --no-deps bayesian-torch==0.5.0 blitz-bayesian-pytorch==0.2.8 torchbnn==1.2 tyxe==0.0.2 ivon-opt==0.1.3

"$DIR/bin/python" - <<'CODE'
import importlib.metadata as metadata
import platform

print("python", platform.python_version())
for name in "bitsback torch numpy bayesian-torch blitz-bayesian-pytorch torchbnn pyro-ppl tyxe ivon-opt".split():
    print(name, metadata.version(name))
CODE
