"""The CUDA library has every name that generated code may use, and each compiles for every type."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from cuda_harness import ARCHITECTURES, LIBRARY, compiled, missing, needs_compiler, source_of
from tilewright.codegen.spelling import (
    ACCUMULATE,
    ADD_PRODUCT,
    CHECKED,
    FLOAT_FUNCTIONS,
    INTEGER_FUNCTIONS,
    SUFFIX,
)
from tilewright.dtypes import DType
from tilewright.loops.scalars import ScalarOp
from tilewright.runtime.cuda.toolchain import TO_COMPILE

FLOATS = {"f32": DType.F32, "f64": DType.F64}
INTEGERS = {name: t for t, name in SUFFIX.items() if t.is_integer}
PREDICATES = ("isnan", "isinf")
ARITY = {n: op.arity for t in (FLOAT_FUNCTIONS, INTEGER_FUNCTIONS) for op, n in t.items()}

NAMES = {
    "math": [f"{name}_{kind}" for name in FLOAT_FUNCTIONS.values() for kind in FLOATS],
    "integers": list(INTEGER_FUNCTIONS.values()),
    "checks": list(CHECKED.values()),
    "accumulate": [f"{v}_{t}" for v in (*ACCUMULATE.values(), ADD_PRODUCT) for t in FLOATS],
    "casts": ["select", "to_bool", *(f"to_{t}" for t in SUFFIX.values() if t != "b8")],
    "pointers": [
        *(f"{place}_{t}" for place in ("stack", "shared") for t in SUFFIX.values()),
        *(f"{verb}_{t}" for verb in ("load", "store") for t in ("b8", "f16", "bf16")),
        "offset",
    ],
}


@needs_compiler
@pytest.mark.parametrize("module", NAMES)
def test_names(module: str) -> None:
    library = import_module(f"{LIBRARY}.{module}")
    assert not [name for name in NAMES[module] if not hasattr(library, name)]


def calls(names: list[str], arity: dict[str, int]) -> str:
    """A kernel's body that stores the result of each function."""
    lines = ["i = thread()"]
    for k, name in enumerate(names):
        operands = ", ".join([f"p{n}[i]" for n in range(arity[name])])
        lines.append(f"p2[i + {k} * n0] = {name}({operands})")
    return "\n".join(lines)


@needs_compiler
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", FLOATS)
def test_functions_of_floats_compile(kind: str, architecture: str) -> None:
    names = [f"{n}_{kind}" for n in (*FLOAT_FUNCTIONS.values(), "rsqrt", "softplus")]
    names = [n for n in names if not n.startswith(PREDICATES)]
    arity = {f"{n}_{kind}": a for n, a in (ARITY | {"rsqrt": 1, "softplus": 1}).items()}
    imports = {"threads": "thread", "math": ", ".join(names)}
    body = calls(names, arity)
    source = source_of(imports, body, [FLOATS[kind]] * 3, architecture)
    assert compiled(source).usage.spill_bytes == 0


@needs_compiler
@pytest.mark.parametrize("kind", INTEGERS)
def test_functions_of_integers_compile(kind: str) -> None:
    checks = [n for op, n in CHECKED.items() if op is not ScalarOp.CHECK]
    names = list(INTEGER_FUNCTIONS.values())
    body = calls(names, ARITY)
    body += "".join(f"\np2[i] = {name}(p0[i], p1[i], errors, 1)" for name in checks)
    imports = {"threads": "thread", "integers": ", ".join(names), "checks": ", ".join(checks)}
    source = source_of(imports, body, [INTEGERS[kind]] * 3)
    assert compiled(source).usage.spill_bytes == 0


@needs_compiler
@pytest.mark.parametrize("kind", [*INTEGERS, *FLOATS])
def test_casts_compile(kind: str) -> None:
    """From this type to each other."""
    targets = [*INTEGERS, *FLOATS, "f16", "bf16", "bool"]
    results = {"f16": DType.F32, "bf16": DType.F32, "bool": DType.U8, **INTEGERS, **FLOATS}
    lines = ["i = thread()"]
    lines += [f"p{k + 1}[i] = to_{target}(p0[i])" for k, target in enumerate(targets)]
    imports = {"threads": "thread", "casts": ", ".join(f"to_{t}" for t in targets)}
    pointers = [(INTEGERS | FLOATS)[kind], *(results[t] for t in targets)]
    assert compiled(source_of(imports, "\n".join(lines), pointers)).usage.spill_bytes == 0


@pytest.mark.skipif(bool(missing(TO_COMPILE)), reason=missing(TO_COMPILE))
class TestMeanings:
    """What the functions are said to compute, against NumPy."""

    def test_halves(self) -> None:
        halves = import_module(f"{LIBRARY}.halves")
        values = np.array([0, 1, -2.5, 1e-7, 65504, 1e5, np.inf], np.float32)
        with np.errstate(over="ignore"):
            exact = values.astype(np.float16).astype(np.float32)
        low, high = halves.unpack_f16.meaning(halves.pack_f16.meaning(values, -values))
        np.testing.assert_array_equal((low, high), (exact, -exact))

    def test_tf32(self) -> None:
        to_tf32 = import_module(f"{LIBRARY}.halves").to_tf32.meaning
        step = np.float32(2.0**-10)  # of a mantissa of 10 bits
        values = np.array([1, 1 + step, 1 + step / 2, 1 + step / 4, -1 - step / 2, np.inf])
        found = to_tf32(values.astype(np.float32)).view(np.float32)
        np.testing.assert_array_equal(found, [1, 1 + step, 1 + step, 1, -1 - step, np.inf])

    def test_reductions(self) -> None:
        reduce = import_module(f"{LIBRARY}.reduce")
        values = np.arange(64, dtype=np.float32)
        groups = values.reshape(-1, 8).sum(1).repeat(8)
        np.testing.assert_array_equal(reduce.warp_add.meaning(values, 8), groups)
        assert reduce.block_maximum.meaning(values, 64) == 63

    def test_matrices(self) -> None:
        """A matrix and its transpose, held by lanes as the PTX ISA draws them."""
        mma = import_module(f"{LIBRARY}.mma")
        rows = np.arange(256, dtype=np.uint16).reshape(32, 8)
        plain, turned = np.zeros((32, 1), np.uint32), np.zeros((32, 1), np.uint32)
        mma.load_matrix1.meaning(plain, 0, rows)
        mma.load_matrix1_transposed.meaning(turned, 0, rows)
        assert plain[5, 0] == int(rows[1, 2]) | int(rows[1, 3]) << 16
        assert turned[5, 0] == int(rows[2, 1]) | int(rows[3, 1]) << 16

    def test_shuffles(self) -> None:
        threads = import_module(f"{LIBRARY}.threads")
        lanes = np.arange(32)
        assert (threads.shuffle_xor.meaning(lanes, 3) == (lanes ^ 3)).all()
        assert threads.shuffle_up.meaning(lanes, 2)[:3].tolist() == [0, 1, 0]
        assert threads.shuffle_down.meaning(lanes, 2)[29:].tolist() == [31, 30, 31]
