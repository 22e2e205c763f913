"""Scalar functions on a GPU against exact results, and bit by bit against the CPU's kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cuda_harness import THREADS, execute, runs, source_of
from kernels_harness import elementwise
from tilewright.dtypes import DType
from tilewright.runtime.cuda.toolchain import TO_COMPILE, find_toolchain

if not find_toolchain().has(TO_COMPILE):
    pytest.skip("there is no numba-cuda to compile with", allow_module_level=True)

from tilewright_kernels.cuda.math import ACCURACY

Array = np.ndarray[Any, Any]
Exact = Callable[..., Any]
BLOCK = 128
INTEGERS = {t.name.lower(): t for t in DType if t.is_integer and t.is_native}
FLOATS = {"f32": DType.F32, "f64": DType.F64}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38]


def _sigmoid(x: Any) -> Any:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _error_function(x: Any) -> Any:
    return np.array([math.erf(v) for v in x.astype(np.float64)])


ONE: dict[str, Exact] = {
    "reciprocal": lambda x: 1 / x,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "erf": _error_function,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
    "abs": np.abs,
    "sign": np.sign,
}
TWO: dict[str, Exact] = {
    "maximum": np.maximum,
    "minimum": np.minimum,
    "pow": np.power,
    "mod": np.fmod,
    "floor_mod": np.mod,
}
DOUBLE_ULPS = 4.0
# libdevice rounds 1 + x: within 1 of the rounded result, as the CUDA Programming Guide counts.
DOUBLE_LOG1P_ULPS = 1.5


def floats(dtype: DType) -> Array:
    """Special values and random ones of every size."""
    rng = np.random.default_rng(1)
    wide = rng.standard_normal(200) * 10.0 ** rng.uniform(-30, 30, 200)
    parts = [SPECIAL, rng.standard_normal(200) * 3, rng.uniform(-100, 100, 200), wide]
    values = np.concatenate([*parts, rng.uniform(-1, 1, 200)])
    return padded(values.astype(dtype.numpy))


def padded(values: Array) -> Array:
    """Repeated to whole blocks."""
    return np.resize(values, -(-len(values) // BLOCK) * BLOCK)


def apply(call: str, module: str, inputs: list[Array], kinds: list[DType], result: DType) -> Array:
    """`call` of x0[i], x1[i] ... for each i, on the emulated GPU."""
    name = call.partition("(")[0]
    for k in range(len(inputs)):
        call = call.replace(f"x{k}", f"p{k}")
    body = f"i = block() * {BLOCK} + thread()\np{len(inputs)}[i] = {call}"
    imports = {"threads": THREADS, module: name}
    output = np.full(len(inputs[0]), 77, result.numpy)
    source = source_of(imports, body, [*kinds, result], threads=BLOCK)
    return execute(source, [*inputs, output], blocks=len(inputs[0]) // BLOCK)[-1]


def ulps(found: Array, exact: Array) -> Array:
    """Errors in units of the last place of the result's type; infinite where a special value is
    not met."""
    with np.errstate(all="ignore"):
        wanted = exact.astype(found.dtype)
        error = np.abs(found.astype(np.longdouble) - exact) / np.spacing(np.abs(wanted))
    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    return np.where(same, 0, np.where(np.isfinite(error), error, np.inf))


def worst(found: Array, exact: Array, inputs: list[Array]) -> tuple[float, str]:
    error = ulps(found, exact)
    at = int(error.argmax())
    operands = ", ".join(repr(x[at]) for x in inputs)
    return float(error[at]), f"{found[at]!r} at {operands}, not {exact[at]!r}"


@runs
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("name", ONE)
def test_functions_of_one(name: str, kind: str) -> None:
    dtype = FLOATS[kind]
    x = floats(dtype)
    found = apply(f"{name}_{kind}(x0[i])", "math", [x], [dtype], dtype)
    with np.errstate(all="ignore"):
        exact = ONE[name](x.astype(np.longdouble))
    if name in ("reciprocal", "exp2") and kind == "f32":
        exact = np.where(np.abs(exact) < np.finfo(np.float32).tiny, 0, exact)
    allowed = ACCURACY[name] if kind == "f32" else min(ACCURACY[name], DOUBLE_ULPS)
    if (name, kind) == ("log1p", "f64"):
        allowed = DOUBLE_LOG1P_ULPS
    error, said = worst(found, exact, [x])
    assert error <= allowed, said


@runs
@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("name", TWO)
def test_functions_of_two(name: str, kind: str) -> None:
    dtype = FLOATS[kind]
    special = np.array(SPECIAL, dtype.numpy)
    rng = np.random.default_rng(2)
    some = (rng.standard_normal(200) * 10.0 ** rng.uniform(-3, 3, 200)).astype(dtype.numpy)
    a = padded(np.concatenate([np.repeat(special, len(special)), some]))
    b = padded(np.concatenate([np.tile(special, len(special)), some[::-1]]))
    found = apply(f"{name}_{kind}(x0[i], x1[i])", "math", [a, b], [dtype, dtype], dtype)
    with np.errstate(all="ignore"):
        exact = TWO[name](a.astype(np.longdouble), b.astype(np.longdouble))
    error, said = worst(found, exact, [a, b])
    assert error <= ACCURACY[name], said


@runs
@pytest.mark.parametrize("name", ["maximum", "minimum"])
@pytest.mark.parametrize("kind", FLOATS)
def test_zeros_have_an_order(name: str, kind: str) -> None:
    zeros = padded(np.array([0.0, -0.0], FLOATS[kind].numpy))
    found = apply(
        f"{name}_{kind}(x0[i], x1[i])", "math", [zeros, -zeros], [FLOATS[kind]] * 2, FLOATS[kind]
    )
    assert (np.signbit(found) == (name == "minimum")).all()


@runs
@pytest.mark.parametrize("name", ["isnan", "isinf"])
@pytest.mark.parametrize("kind", FLOATS)
def test_predicates(name: str, kind: str) -> None:
    x = floats(FLOATS[kind])
    found = apply(f"{name}_{kind}(x0[i])", "math", [x], [FLOATS[kind]], DType.U8)
    np.testing.assert_array_equal(found, getattr(np, name)(x))


def integers(dtype: DType) -> Array:
    info = np.iinfo(dtype.numpy)
    corners = [info.min, info.min + 1, 0, 1, 2, 3, 7, 31, 32, info.max - 1, info.max]
    corners += [-1, -2, -3, -31] if info.min < 0 else []
    rng = np.random.default_rng(3)
    some = rng.integers(info.min, info.max, 12, dtype.numpy, endpoint=True)
    return np.concatenate([np.array(corners, dtype.numpy), some])


def agree(call: str, module: str, inputs: list[Array], kinds: list[str], result: str) -> None:
    """Both libraries give the same bits."""
    types = {**INTEGERS, **FLOATS}
    rows = [types[k] for k in kinds]
    found = apply(call, module, inputs, rows, types[result])
    wanted = np.empty_like(found)
    name = call.partition("(")[0]
    cpu = elementwise(call, f"{module}.{name}", " ".join(kinds), result)
    cpu(wanted, *inputs, len(wanted))
    assert found.tobytes() == wanted.tobytes()


INTEGER_TWO = (
    "add subtract multiply divide remainder floor_divide floor_modulo minimum maximum shift_left"
    " shift_right power"
).split()


@runs
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", INTEGER_TWO)
def test_integers_as_on_the_cpu(name: str, kind: str) -> None:
    values = integers(INTEGERS[kind])
    a, b = (padded(v.ravel()) for v in np.meshgrid(values, values))
    agree(f"{name}(x0[i], x1[i])", "integers", [a, b], [kind, kind], kind)


@runs
@pytest.mark.parametrize("kind", INTEGERS)
@pytest.mark.parametrize("name", ["negate", "invert", "absolute", "sign"])
def test_one_integer_as_on_the_cpu(name: str, kind: str) -> None:
    agree(f"{name}(x0[i])", "integers", [padded(integers(INTEGERS[kind]))], [kind], kind)


@runs
@pytest.mark.parametrize("target", [*INTEGERS, *FLOATS, "f16", "bf16", "bool"])
@pytest.mark.parametrize("source", [*INTEGERS, *FLOATS])
def test_casts_as_on_the_cpu(source: str, target: str) -> None:
    if source in FLOATS:
        powers = 2.0 ** np.array([7, 8, 15, 16, 31, 32, 63, 64])
        limits = (np.concatenate([powers, -powers])[:, None] + [-1, 0, 1]).ravel()
        values = np.concatenate([floats(FLOATS[source]), limits])
        x = padded(values.astype(FLOATS[source].numpy))
        x = x[~np.isnan(x)] if target in ("f16", "bf16", *FLOATS) else x
        x = padded(x)
    else:
        x = padded(integers(INTEGERS[source]))
    result = {"f16": "f32", "bf16": "f32", "bool": "u8"}.get(target, target)
    agree(f"to_{target}(x0[i])", "casts", [x], [source], result)


@runs
@pytest.mark.parametrize("name", ["rational_sigmoid", "rational_tanh"])
def test_rationals_as_on_the_cpu(name: str) -> None:
    x = floats(DType.F32)
    agree(f"{name}_f32(x0[i])", "math", [x[~np.isnan(x)][: 4 * BLOCK]], ["f32"], "f32")


@runs
@pytest.mark.parametrize("kind", ["i32", "i64", "u8"])
@pytest.mark.parametrize("name", ["checked_div", "checked_rem", "checked_floor_mod"])
def test_division_by_zero_leaves_a_code(name: str, kind: str) -> None:
    dtype = INTEGERS[kind]
    for divisor, code in ((3, 0), (0, 5)):
        a = padded(integers(dtype))
        b = np.full_like(a, 3)
        b[17] = divisor
        body = f"i = block() * {BLOCK} + thread()\np2[i] = {name}(p0[i], p1[i], errors, 5)"
        source = source_of({"threads": THREADS, "checks": name}, body, [dtype] * 3)
        *_, found, errors = execute(source, [a, b, np.zeros_like(a)], blocks=len(a) // BLOCK)
        assert errors[0] == code
        assert divisor or found[17] == 0


@runs
def test_the_greatest_code_remains() -> None:
    data = np.arange(BLOCK, dtype=np.float32)
    index = np.arange(BLOCK)
    index[[3, 90]] = -1, BLOCK
    body = "i = thread()\np2[i] = p0[checked_index(p1[i], n0, errors, i + 1)]"
    types = [DType.F32, DType.I64, DType.F32]
    source = source_of({"threads": THREADS, "checks": "checked_index"}, body, types)
    *_, found, errors = execute(source, [data, index, np.zeros_like(data)], [BLOCK])
    assert errors[0] == 91
    index[[3, 90]] = 0
    np.testing.assert_array_equal(found, data[index])
