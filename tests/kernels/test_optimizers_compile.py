"""The compiler for GPUs takes what the interpreter takes: it asks for types that agree."""

import os
import subprocess
import sys

COMPILED = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_linf.kernels import block_moments, block_squares, block_update, signum
from lightning_linf.kernels.tiles import NUM_TILES, NUM_WARPS, WHOLE, tiling

TABLES = dict.fromkeys(("fields", "grads", "owners"), "*i64")
NAMES = {tl.float32: "*fp32", tl.float64: "*fp64"}


def check(kernel, pointers, **constants):
    pointers = TABLES | pointers
    types = {
        name: "constexpr" if name.isupper() else pointers.get(name, "fp32")
        for name in kernel.arg_names
    }
    chosen = {name: constants[name] for name in kernel.arg_names if name.isupper()}
    triton.compile(
        ASTSource(fn=kernel, signature=types, constexprs=chosen),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": NUM_WARPS},
    )


for moment, stored in ((tl.float32,) * 2, (tl.float64,) * 2, (tl.float32, tl.bfloat16)):
    numbers = dict.fromkeys(("partials", "denominators"), NAMES[moment])
    stored_as = dict(P=stored, G=stored, M=stored)
    for tiles, captured in ((WHOLE, False), (tiling(False, 300), True), (tiling(True, 300), True)):
        options = dict(
            ACROSS=tiles.is_across, ROWS=tiles.rows, COLS=tiles.cols, TILES=NUM_TILES,
            ALIGNED=not captured, LR_TENSOR=captured, COUNTS=captured, DECAYS=not captured,
            MAXIMIZE=captured, INSIDE=captured, **stored_as,
        )
        shape = block_moments.MANY if captured else block_moments.FEW
        moments = dict(options, BLOCKS=shape[0], PARTS=shape[1])
        check(block_squares._add_squares, numbers, DTYPE=stored, **options)
        check(block_moments._update_moments, numbers, **moments)
        rate = {"lr_tensor": "*fp32" if captured else NAMES[moment]}
        check(block_update._update_params, numbers | rate, **options)
        if tiles.rows == 1:
            check(block_update._update_coordinates, {"lr_tensor": "*i64"}, DTYPE=moment, **options)
            check(signum._signum, {"lr_tensor": "*i64"}, DTYPE=moment, **options)
"""


def test_kernels_of_optimizers_compile_for_gpus_of_nvidia(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
