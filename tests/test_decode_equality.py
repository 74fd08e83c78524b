"""Other thread counts and instruction sets decode files to the same bytes."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
ALL_OFF = " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__.get(feature))
"""Everything numpy could use beyond what it is compiled for."""

SETTINGS = [(1, "default", ALL_OFF), (2, "default", ""), (1, "avx2", ""), (2, "avx2", ""), (1, "", ""), (2, "", "")]
"""Torch's threads, its kernels (none: the best that this machine has), and what numpy may not use."""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86-64")
@pytest.mark.parametrize(("threads", "capability", "off"), SETTINGS)
def test_golden_files_are_the_same(threads, capability, off):
    environment = {key: value for key, value in os.environ.items() if key != "ATEN_CPU_CAPABILITY"}
    environment |= {"ATEN_CPU_CAPABILITY": capability} if capability else {}
    environment |= {"NPY_DISABLE_CPU_FEATURES": off, "OMP_NUM_THREADS": str(threads)}
    environment |= {"MKL_NUM_THREADS": str(threads)}
    command = [sys.executable, str(ROOT / "scripts" / "make_golden.py"), "--check", "--threads", str(threads), str(GOLDEN)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("tables") == json.loads((GOLDEN / "tables.json").read_text())
    assert len(found) == len(list(GOLDEN.glob("*.bb"))) > 0
    for name, facts in found.items():
        stated = json.loads((GOLDEN / f"{name}.json").read_text())
        assert facts == {key: stated[key] for key in facts}, name
        assert ("payload" in facts) == ("payload" in stated), name
