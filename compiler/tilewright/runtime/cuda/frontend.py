"""Kernel text to NVVM's language: numba-cuda's compiler with only the passes that kernels need.

Generated kernels have no closures, no `with`, no calls to be inlined and no dead branches. Leaving
out the passes for those shortens the front end by a fifth, with the same result to the letter.
"""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.cuda import utils
from numba.cuda.compiler import (
    CreateLibrary,
    CUDABackend,
    CUDACompiler,
    CUDANativeLowering,
    CUDATranslateBytecode,
    compile_extra,
    kernel_fixup,
)
from numba.cuda.core.callconv import CUDACallConv
from numba.cuda.core.compiler_machinery import PassManager
from numba.cuda.core.typed_passes import IRLegalization, NopythonTypeInference, PreLowerStripPhis
from numba.cuda.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA
from numba.cuda.cudadrv import nvvm
from numba.cuda.descriptor import cuda_target
from numba.cuda.flags import CUDAFlags

from tilewright.dtypes import DType
from tilewright.runtime.cuda.kernel import KernelSource
from tilewright.runtime.cuda.toolchain import capability_of

ELEMENTS: dict[DType, Any] = {
    DType.F32: types.float32,
    DType.F64: types.float64,
    DType.F16: types.uint16,
    DType.BF16: types.uint16,
    DType.I8: types.int8,
    DType.I16: types.int16,
    DType.I32: types.int32,
    DType.I64: types.int64,
    DType.U8: types.uint8,
    DType.U16: types.uint16,
    DType.U32: types.uint32,
    DType.U64: types.uint64,
    DType.BOOL: types.uint8,
}

MAP_WORDS, MAP_ALIGNMENT = 16, 64
MAP_TYPE = f"[{MAP_WORDS} x i64]*"
DEFINITION = re.compile(r"^define .*$", re.MULTILINE)

PASSES = (
    CUDATranslateBytecode,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
    CreateLibrary,
    CUDANativeLowering,
    CUDABackend,
)


class LeanCompiler(CUDACompiler):  # type: ignore[misc]  # numba-cuda has no annotations
    """numba-cuda's compiler with only the passes that straight, typed kernels need."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("tilewright")
        for step in PASSES:
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


def nvvm_modules(source: KernelSource, symbol: str) -> Sequence[str]:
    """The modules of a kernel, its entry called `symbol`, as text in NVVM's language."""
    result = _compile(_function(source.text, symbol), signature(source), source.architecture)
    result.library.finalize()
    name = result.fndesc.llvm_func_name
    kernel = result.library.get_function(name)
    kernel_fixup(kernel, False)
    nvvm.set_launch_bounds(kernel, source.threads)
    _keep_in_place(kernel, source.maps)
    for argument in kernel.args[: len(source.pointers)]:
        argument.add_attribute("noalias")  # a kernel's tensors lie apart
    # Numba's name counts the functions of this process; ours depends on the kernel alone.
    return [_by_value(m.replace(name, symbol)) for m in result.library.llvm_strs]


def _keep_in_place(kernel: Any, maps: int) -> None:
    """The last parameters are read where the launch put them, which hardware insists on; NVVM
    counts parameters from 1."""
    if maps:
        last = len(kernel.args)
        numbers = [ir.Constant(ir.IntType(32), n + 1) for n in range(last - maps, last)]
        module = kernel.module
        node = module.add_metadata([kernel, "grid_constant", module.add_metadata(numbers)])
        cgutils.get_or_insert_named_metadata(module, "nvvm.annotations").add(node)


def _by_value(module: str) -> str:
    """Descriptions of tensors are parameters themselves: llvmlite writes `byval` in the manner of
    a later language than NVVM's."""
    whole = f"{MAP_TYPE} byval align {MAP_ALIGNMENT} %"
    return DEFINITION.sub(lambda head: head[0].replace(f"{MAP_TYPE} %", whole), module)


def signature(source: KernelSource) -> tuple[Any, ...]:
    """Numba's types of the kernel's parameters: pointers, numbers, the place of error codes,
    descriptions of tensors."""
    pointer: Any = types.CPointer
    pointers = [pointer(ELEMENTS[dtype]) for dtype in source.pointers]
    errors = [pointer(types.int64)] if source.checks else []
    maps = [pointer(types.UniTuple(types.int64, MAP_WORDS))] * source.maps
    return (*pointers, *[types.int64] * source.numbers, *errors, *maps)


def _function(text: str, symbol: str) -> Callable[..., None]:
    """The text's `kernel`; tracebacks through it show its lines."""
    filename = f"<tilewright {symbol}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": f"tilewright.generated.{symbol}"}
    exec(compile(text, filename, "exec"), namespace)
    function: Callable[..., None] = namespace["kernel"]
    return function


def _compile(function: Callable[..., None], arguments: tuple[Any, ...], architecture: str) -> Any:
    """numba-cuda's result for a kernel of these arguments."""
    flags = CUDAFlags()
    flags.no_compile = True
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    flags.compute_capability = capability_of(architecture)
    context = cuda_target.target_context
    with utils.numba_target_override():
        return compile_extra(
            typingctx=cuda_target.typing_context,
            targetctx=context,
            func=function,
            args=arguments,
            return_type=types.void,
            flags=flags,
            locals={},
            pipeline_class=LeanCompiler,
            call_conv=CUDACallConv(context),
            abi_info={},
        )
