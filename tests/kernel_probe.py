"""Compile the kernels of GPUs for a target without a GPU, and print what came out as JSON: python tests/kernel_probe.py TARGET."""

import itertools
import json
import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bitsback.kernels import _layout, _triton
from bitsback.kernels._batches import CHUNK, WARPS

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


def other(target, kernel, signature, fixed):
    """A kernel besides the sweep."""
    signature = signature | dict.fromkeys(fixed, "constexpr")
    return triton.compile(ASTSource(kernel, signature, constexprs=fixed), target=target)


def main():
    target, binary = TARGETS[sys.argv[1]]
    found = {}
    forms, modes = _layout.FORMS, _layout.MODES
    of_gradients = (_layout.STEP, _layout.FILL)
    variants = [{"PRIOR": form, "FULL": False, "LEARN": form < forms["given"]} for form in forms.values()]
    variants += [
        {"PRIOR": form, "MODE": mode, "LEARN": mode in of_gradients and form < forms["given"]}
        for form, mode in itertools.product(forms.values(), modes)
        if mode in (*of_gradients, _layout.FILLED) or form in (forms["normal"], forms["given"])
    ]
    variants += [{"PRIOR": form, "RULE": _layout.IVON} for form in forms.values()]
    variants += [{"PRIOR": forms["given"], "MODE": _layout.DRAW, "CARRY": True}]
    for chosen in variants:
        kernel = compiled(target, **chosen)
        loads = kernel.asm.get("ptx", "").count("ld.global.v4")
        found[json.dumps(chosen)] = {"bytes": len(kernel.asm[binary]), "wide_loads": loads}
    fill = {"out": "*fp32", "count": "i32", "start": "i32", "draw": "*i64", "offset": "i32", "stream": "i64"}
    reduce = {"sums": "*fp32", "ranges": "*i64", "totals": "*fp64"}
    for name, kernel in (
        ("fill", other(target, _triton.fill_kernel, fill, {"BLOCK": CHUNK})),
        ("reduce", other(target, _triton.reduce_kernel, reduce, {"WIDTH": 10, "COLUMNS": 16, "BLOCK": 512})),
    ):
        found[json.dumps({"kernel": name})] = {"bytes": len(kernel.asm[binary]), "wide_loads": 0}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
