#!/bin/bash
# Build wheel and sdist, install the wheel into an empty environment, and train, pack and read a file there without extras.
#     scripts/check_wheel.sh [python3]
set -euo pipefail
python=${1:-python3}
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/env"
pip=("$work/env/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install build
"$work/env/bin/python" -m build --outdir "$work/dist" "$repository" > "$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
ls "$work/dist"
"${pip[@]}" install --constraint "$repository/constraints.txt" torch==2.13.0
"${pip[@]}" install --constraint "$repository/constraints.txt" "$work"/dist/*.whl
cd "$work"
PATH="$work/env/bin:$PATH"
bitsback --version
bitsback train digits training.epochs=5 ledger.samples=5 --out run 2> said || { cat said; exit 1; }
grep -q "bitsback\[report\]" said || { cat said; exit 1; }  # no page without the extra, and how to get it
bitsback pack run -o digits.bb 2> /dev/null
bitsback inspect digits.bb > /dev/null
"$work/env/bin/python" - << 'PYTHON'
import bitsback
from bitsback.coding import Stack

assert bitsback.load("digits.bb") is not None and Stack.empty().bits == 0
PYTHON
echo "the wheel trains, packs and reads without extras"
