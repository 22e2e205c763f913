"""Kernel text to object code: Numba's front end, then one LLVM pipeline of our own.

Generated kernels need no wrapper for Python callers and no entry in Numba's engine, so this keeps
only the passes that turn Python into LLVM IR, and emits an object that exports one plain function
`void symbol(int64 task, int64 args)`. Importing this module imports Numba.
"""

from __future__ import annotations

import itertools
import linecache
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from numba import types
from numba.core import codegen, compiler, cpu, registry
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import FunctionPass, PassManager, register_pass
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)

from tilewright.errors import CompileError
from tilewright.runtime.loader import target_machine, undefined_symbols
from tilewright_kernels.cpu.unroll import MARK

SIGNATURE = (types.int64, types.int64)

_LIBM = """acos acosh asin asinh atan atan2 atanh cbrt ceil copysign cos cosh erf erfc exp exp2
expm1 fabs floor fma fmax fmaximum fmaximum_num fmin fminimum fminimum_num fmod frexp hypot ldexp
lgamma llrint llround log log10 log1p log2 logb lrint lround modf nearbyint nextafter pow remainder
rint round roundeven scalbn sin sincos sinh sqrt tan tanh tgamma trunc""".split()

ALLOWED_SYMBOLS = frozenset(
    {name + suffix for name in _LIBM for suffix in ("", "f")}
    | {"memset", "memcpy", "memmove"}
    | {"sched_yield", "nanosleep", "syscall", "clock_gettime", "pthread_self"}  # the executor's own
)

# A kernel returns nothing, yet a Numba function returns a status. The guard call is dead code once
# LLVM has proved that the status is 0 (or -2: None); otherwise it stays and the kernel is refused.
GUARD = "tilewright_kernel_may_raise"
EXPORT = """
declare void @"{guard}"()
declare i32 @"{native}"(i8**, {{ i8*, i32, i8*, i8*, i32 }}**, i64, i64)
define void @"{symbol}"(i64 %task, i64 %args) {{
  %result = alloca i8*
  %exception = alloca {{ i8*, i32, i8*, i8*, i32 }}*
  %status = call i32 @"{native}"(i8** %result, {{ i8*, i32, i8*, i8*, i32 }}** %exception,
                                 i64 %task, i64 %args)
  %zero = icmp eq i32 %status, 0
  %none = icmp eq i32 %status, -2
  %good = or i1 %zero, %none
  br i1 %good, label %done, label %bad
bad:
  call void @"{guard}"()
  br label %done
done:
  ret void
}}
"""


UNROLLED = re.compile(rf"^ *; {MARK}\n((?: +.*\n)*?) +(br label .*)", re.MULTILINE)
FREE_NUMBER = 1 << 20  # of metadata


def with_unrolled_loops(ir: str) -> str:
    """Textual IR in which loops whose bodies end with a mark are ones that LLVM unrolls."""
    loops = itertools.count(FREE_NUMBER)
    made: list[str] = []

    def mark(found: re.Match[str]) -> str:
        made.append(f"!{next(loops)}")
        return f"{found[1]}  {found[2]}, !llvm.loop {made[-1]}"

    marked = UNROLLED.sub(mark, ir)
    full = '!{!"llvm.loop.unroll.full"}'
    return "\n".join([marked, *(f"{n} = distinct !{{{n}, {full}}}" for n in made)])


class ObjectLibrary(codegen.JITCodeLibrary):
    """Collects the IR of one kernel; Numba neither optimises nor loads it."""

    def add_ir_module(self, ir_module: Any) -> None:
        self.add_llvm_module(llvm.parse_assembly(with_unrolled_loops(str(ir_module))))

    def add_llvm_module(self, ll_module: llvm.ModuleRef) -> None:
        self._final_module.link_in(ll_module)

    def _finalize_specific(self) -> None:
        pass

    def whole_module(self) -> llvm.ModuleRef:
        """The kernel's IR together with that of the compiled functions it calls."""
        for library in self._linking_libraries:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        return self._final_module


@register_pass(mutates_CFG=False, analysis_only=True)
class UseObjectLibrary(FunctionPass):
    """Puts an `ObjectLibrary` where the later passes look for the library of the function."""

    _name = "tilewright_object_library"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        library: Any = ObjectLibrary  # Numba's constructors have no annotations
        state.library = library(state.targetctx.codegen(), state.func_id.func_qualname)
        return True


PASSES = (
    TranslateByteCode,
    UseObjectLibrary,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    NopythonTypeInference,
    PreLowerStripPhis,
    IRLegalization,
    NativeLowering,
)


class LeanCompiler(compiler.CompilerBase):
    """Numba's compiler with only the passes that straight, typed kernels need."""

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("tilewright")
        for step in PASSES:
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]


def compile_kernel(text: str, symbol: str) -> bytes:
    """An ELF object that exports `void symbol(int64 task, int64 args)`, from a kernel's text.

    Raises CompileError, which shows the text, for whatever is wrong with it.
    """
    module = _module(text, symbol)
    data: bytes = _machine().emit_object(module)
    foreign = [name for name in undefined_symbols(data) if name not in ALLOWED_SYMBOLS]
    if GUARD in foreign:
        raise _refusal(text, "it contains an operation that may raise an exception")
    if foreign:
        raise _refusal(text, f"it needs symbols outside of libm: {', '.join(foreign)}")
    return data


def kernel_ir(text: str) -> str:
    """The optimised LLVM IR of a kernel's text, to look at."""
    return kernel_levels(text)[0]


def kernel_assembly(text: str) -> str:
    """The assembly of a kernel's text, to look at."""
    return kernel_levels(text)[1]


def kernel_levels(text: str) -> tuple[str, str]:
    """Both from one compilation."""
    module = _module(text, "kernel")
    return str(module), str(_machine().emit_assembly(module))


def _module(text: str, symbol: str) -> llvm.ModuleRef:
    """The optimised module of a kernel."""
    try:
        with global_compiler_lock:
            module, native = _lower(_function(text, symbol))
            _export(module, native, symbol)
            _optimize(module)
    except Exception as error:
        raise _refusal(text, f"{type(error).__name__}: {error}") from error
    return module


def _function(text: str, symbol: str) -> Callable[[int, int], None]:
    """The text's `kernel`; tracebacks through it show its lines."""
    filename = f"<tilewright {symbol}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"__name__": f"tilewright.generated.{symbol}"}
    exec(compile(text, filename, "exec"), namespace)
    function: Callable[[int, int], None] = namespace["kernel"]
    return function


def _lower(function: Callable[[int, int], None]) -> tuple[llvm.ModuleRef, str]:
    """Unoptimised IR of the function and the name of its Numba entry."""
    context = registry.cpu_target
    flags: Any = compiler.Flags()
    options = {
        "nopython": True,
        "nogil": True,
        "error_model": "numpy",
        "fastmath": False,  # kernels say themselves what may be reordered
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    cpu.CPUTargetOptions.parse_as_flags(flags, options)
    flags.no_compile = True
    new_compiler: Any = LeanCompiler
    lean = new_compiler(
        context.typing_context, context.target_context, None, SIGNATURE, types.void, flags, {}
    )
    lean.compile_extra(function)
    return lean.state.library.whole_module(), lean.state.cr.fndesc.mangled_name


def _export(module: llvm.ModuleRef, native: str, symbol: str) -> None:
    """Adds the plain function `symbol` and hides every other definition."""
    shim = llvm.parse_assembly(EXPORT.format(guard=GUARD, native=native, symbol=symbol))
    shim.triple, shim.data_layout = module.triple, module.data_layout
    module.link_in(shim)
    for function in module.functions:
        if not function.is_declaration and function.name != symbol:
            function.linkage = "internal"
    for variable in module.global_variables:
        if variable.name.startswith("_ZN08NumbaEnv"):
            variable.linkage = "internal"


def _optimize(module: llvm.ModuleRef) -> None:
    """O3 with loop vectorisation; packing straight-line code cost time and gained nothing."""
    tuning = llvm.PipelineTuningOptions(speed_level=3)
    tuning.loop_vectorization = True
    tuning.loop_unrolling = False
    tuning.slp_vectorization = False
    builder = llvm.PassBuilder(_machine(), tuning)
    builder.getModulePassManager().run(module, builder)


@cache
def _machine() -> llvm.TargetMachine:
    return target_machine()


def _refusal(text: str, reason: str) -> CompileError:
    return CompileError(f"a generated kernel did not compile: {reason}\n\n{text}")
