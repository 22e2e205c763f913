"""Every kind of kernel becomes the machine code that it is made for, and nothing spills."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from onnx import parser

from cuda_harness import ARCHITECTURES, instructions, needs_sass, uses
from tilewright.driver import compile_in
from tilewright.explore.feeds import Wanted, feeds_of
from tilewright.explore.precompile import offline_workshop
from tilewright.options import Options

pytestmark = needs_sass
HEADER = '<ir_version: 10, opset_import: ["" : 23, "ai.onnx.ml" : 4, "com.microsoft" : 1]>\n'
REGISTERS = 1 << 16  # of a multiprocessor, which has to hold at least one block

WARPGROUPS = "sm_90a"


@dataclass(frozen=True)
class Template:
    """A graph, and instructions that some kernel of it must have; other ones with warpgroups."""

    graph: str
    wanted: str = ""
    registers: int = 255
    by_warpgroups: str = ""

    def wanted_on(self, architecture: str) -> list[str]:
        """The instructions, for an architecture."""
        hopper = architecture == WARPGROUPS and self.by_warpgroups
        return (self.by_warpgroups if hopper else self.wanted).split()


def map_of(kind: str) -> str:
    shape = f"{kind}[64,4096]"
    return f"({shape} x, {shape} z) => ({shape} y) {{ a = Mul(x, z) y = Add(a, x) }}"


def product_of(kind: str, m: int, n: int, k: int) -> str:
    return f"({kind}[{m},{k}] x, {kind}[{k},{n}] w) => ({kind}[{m},{n}] y) {{ y = MatMul(x, w) }}"


def images_of(kind: str) -> str:
    return (
        f"({kind}[4,32,28,28] x, {kind}[64,32,3,3] w) => ({kind}[4,64,u,v] y) {{ y = Conv(x, w) }}"
    )


def rows_of(expression: str) -> str:
    return f"(float[512,1024] x) => (float[m,n] y) {{ y = {expression} }}"


TEMPLATES = {
    "map": Template(map_of("float"), "LDG.128 STG.128", 32),
    "map of halves": Template(map_of("float16"), "LDG.128 STG.128", 48),
    "map of doubles": Template(map_of("double"), "LDG.128 STG.128 DADD DMUL", 48),
    "map of bytes": Template(map_of("uint8"), "LDG STG", 48),
    "softmax": Template(rows_of("Softmax(x)"), "LDG.128 STG.128 SHFL.BFLY MUFU.EX2", 64),
    "sum": Template("(float[512,1024] x) => (float y) { y = ReduceSum<keepdims = 0>(x) }",
                    "LDG.128 SHFL.BFLY", 64),
    "sums of rows": Template("(float[512,1024] x) => (float[512] y) <int64[1] a = {1}>"
                             " { y = ReduceMean<keepdims = 0>(x, a) }", "LDG.128 SHFL.BFLY", 64),
    "sums of columns": Template("(float[512,1024] x) => (float[1024] y) <int64[1] a = {0}>"
                                " { y = ReduceMax<keepdims = 0>(x, a) }", "LDG FMNMX", 96),
    "layer normalization": Template(
        "(float[512,1024] x, float[1024] s, float[1024] b) => (float[512,1024] y)"
        " { y = LayerNormalization(x, s, b) }", "LDG.128 STG.128 SHFL.BFLY", 64),
    "transpose": Template(rows_of("Transpose(x)"), "LDG.128 STG.128 STS LDS BAR", 64),
    "gather": Template("(float[512,1024] x, int64[300] i) => (float[300,1024] y)"
                       " { y = Gather(x, i) }", "LDG.128 STG.128", 48),
    "concat": Template("(float[256,512] x, float[256,256] z) => (float[256,768] y)"
                       " { y = Concat<axis = 1>(x, z) }", "LDG.128 STG.128", 48),
    "scatter": Template("(float[512,64] x, int64[32,1] i, float[32,64] u) => (float[512,64] y)"
                        " { y = ScatterND<reduction = \"add\">(x, i, u) }", "LDG STG", 64),
    "pooling": Template("(float[4,32,28,28] x) => (float[4,32,u,v] y)"
                        " { y = MaxPool<kernel_shape = [3, 3], strides = [2, 2]>(x) }",
                        "LDG FMNMX STG", 96),
    "resize": Template("(float[4,16,28,28] x) => (float[4,16,56,56] y) <float[4] s = {1, 1, 2, 2}>"
                       " { y = Resize<mode = \"linear\">(x, , s) }", "LDG STG", 96),
    "running sum": Template("(float[64,512] x) => (float[64,512] y) <int64 a = {1}>"
                            " { y = CumSum(x, a) }", "LDG FADD STG", 64),
    "matmul": Template(product_of("float", 2048, 1024, 256), "FFMA LDS.128 BAR", 200),
    "matmul of few rows": Template(product_of("float", 16, 256, 256), "FFMA LDS.128", 128),
    "matmul of doubles": Template(product_of("double", 512, 512, 64), "DFMA LDS.128", 255),
    "matmul of halves": Template(product_of("float16", 512, 512, 256),
                                 "HMMA.16816.F32 LDSM.M88 LDGSTS.128", 200,
                                 "HGMMA UTMALDG SYNCS"),
    "matmul of bfloat16": Template(product_of("bfloat16", 512, 512, 256),
                                   "HMMA.16816.F32.BF16 LDSM.M88 LDGSTS.128", 200,
                                   "HGMMA UTMALDG SYNCS"),
    "matmul of bytes": Template(
        "(uint8[512,256] x, uint8 z) => (int32[m,n] y) <int64[2] s = {256, 512}>"
        " { w = ConstantOfShape<value = int8[1] {1}>(s) y = MatMulInteger(x, w, z) }",
        "IMMA.16832.U8.S8 LDSM.M88 LDGSTS.128", 216),
    "quantised matmul of both as they come": Template(
        "(int8[512,256] x, int8[256,512] w, float s, int8 z) => (int8[m,n] y)"
        " { y = QLinearMatMul(x, s, z, w, s, z, s, z) }",
        "IMMA.16832.S8 LDSM.M88 LDGSTS.128", 216),
    "matmul of bytes of one row": Template(
        "(uint8[1,1024] x, int8[1024,1024] w) => (int32[m,n] y) { y = MatMulInteger(x, w) }",
        "IMAD LDG", 128),
    "convolution of bytes": Template(
        "(uint8[4,32,28,28] x) => (int32[4,64,u,v] y) <int64[4] s = {64, 32, 3, 3}>"
        " { w = ConstantOfShape<value = int8[1] {1}>(s)"
        " y = ConvInteger<pads = [1, 1, 1, 1]>(x, w) }",
        "IMMA.16832.U8.S8 LDSM.M88 LDGSTS.128", 216),
    "matmul of one row": Template(product_of("float", 1, 1024, 1024), "FFMA LDG", 128),
    "convolution": Template(images_of("float"), "FFMA LDS.128", 200),
    "convolution of halves": Template(images_of("float16"), "HMMA.16816.F32 LDSM.M88", 200),
    "depthwise convolution": Template("(float[4,32,28,28] x, float[32,1,3,3] w) =>"
                                      " (float[4,32,u,v] y) { y = Conv<group = 32>(x, w) }",
                                      "LDG FFMA", 128),
    "attention": Template("(float[1,8,256,64] q, float[1,8,256,64] k, float[1,8,256,64] v) =>"
                          " (float[1,8,256,64] y) { y = Attention(q, k, v) }",
                          "FFMA MUFU.EX2", 200),
    "step of a recurrence of bytes": Template(
        "(float[1,1,32] x, int8[1,32,256] w, int8[1,64,256] r, float[1] s, int8[1] z) =>"
        " (float[1,1,1,64] y) { y = com.microsoft.DynamicQuantizeLSTM<hidden_size = 64>"
        "(x, w, r, , , , , , s, z, s, z) }", "IMAD BAR", 64),
    "recurrence": Template("(float[12,4,32] x, float[1,256,32] w, float[1,256,64] r) =>"
                           " (float[12,1,4,64] y) { y = LSTM<hidden_size = 64>(x, w, r) }",
                           "FFMA BAR", 128),
}  # fmt: skip


def kernels_of(template: Template, architecture: str) -> list[Any]:
    model = parser.parse_model(f"{HEADER}g {template.graph}")
    made = compile_in(offline_workshop(Options.from_environment(), architecture), model)
    made.warmup(feeds_of(made, Wanted()))
    return made.kernels


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_machine_code(name: str, architecture: str) -> None:
    template = TEMPLATES[name]
    kernels = kernels_of(template, architecture)
    assert kernels
    found: Counter[str] = Counter()
    for kernel in kernels:
        usage = kernel.compiled.usage
        assert usage.spill_bytes == 0, kernel.name
        assert usage.registers <= template.registers, kernel.name
        assert usage.registers * kernel.threads <= REGISTERS, kernel.name
        found += instructions(kernel.compiled)
    wanted = template.wanted_on(architecture)
    missing = [instruction for instruction in wanted if not uses(found, instruction)]
    assert not missing, sorted(found)
