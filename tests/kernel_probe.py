"""Compile the kernels of GPUs for a target without a GPU, and print what came out as JSON: python tests/kernel_probe.py TARGET."""

import itertools
import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitsback.kernels import _layout, _triton
from bitsback.kernels._launch import CHUNK, WARPS

TARGETS = {"cuda": (GPUTarget("cuda", 90, 32), "cubin"), "hip": (GPUTarget("hip", "gfx942", 64), "hsaco")}
TENSORS = {"chunks": "*i32", "table": "*i64", "draw": "*i64", "numbers": "*fp64", "sums": "*fp32", "narrow": "*i8"}


def compiled(target, **chosen):
    """One variant of the sweep."""
    fixed = {"MODE": _layout.STEP, "RULE": _layout.ADAM, "PRIOR": 0, "LEARN": False, "CARRY": False, "FULL": True, **chosen}
    fixed |= {"WIDTH": 10 if fixed["PRIOR"] == _layout.FORMS["mixture"] else 4, "BLOCK": CHUNK}
    fixed |= {"TABLE_COLUMNS": 961, "TABLE_ROWS": 201, "LOWEST": -36.0, "CELLS": 20.0}
    signature = TENSORS | dict.fromkeys(["offset_now", "sign_now", "offset_next", "sign_next"], "i32")
    signature |= dict.fromkeys(fixed, "constexpr")
    aligned = {(place,): [["tt.divisibility", 16]] for place in range(len(TENSORS))}
    source = ASTSource(_triton.sweep_kernel, signature, constexprs=fixed, attrs=aligned)
    return triton.compile(source, target=target, options={"num_warps": WARPS})


def main():
    target, binary = TARGETS[sys.argv[1]]
    found = {}
    forms, modes = _layout.FORMS, _layout.MODES
    variants = [
        {"PRIOR": form, "FULL": full, "LEARN": form < forms["given"]}
        for form, full in itertools.product(forms.values(), (True, False))
    ]
    variants += [{"MODE": mode, "CARRY": mode == _layout.DRAW} for mode in modes[1:]] + [{"RULE": _layout.IVON}]
    for chosen in variants:
        kernel = compiled(target, **chosen)
        ptx = kernel.asm.get("ptx", "")
        found[json.dumps(chosen)] = {"bytes": len(kernel.asm[binary]), "wide_loads": ptx.count("ld.global.v4")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
