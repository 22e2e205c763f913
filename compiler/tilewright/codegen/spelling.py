"""How the CPU target spells scalar functions and types. A new scalar function adds one entry
here."""

from __future__ import annotations

from tilewright.dtypes import DType
from tilewright.loops.scalars import ScalarOp

SUFFIX = {
    DType.F32: "f32",
    DType.F64: "f64",
    DType.F16: "f16",
    DType.BF16: "bf16",
    DType.I8: "i8",
    DType.I16: "i16",
    DType.I32: "i32",
    DType.I64: "i64",
    DType.U8: "u8",
    DType.U16: "u16",
    DType.U32: "u32",
    DType.U64: "u64",
    DType.BOOL: "b8",
}

INFIX = {
    ScalarOp.ADD: "+",
    ScalarOp.SUB: "-",
    ScalarOp.MUL: "*",
    ScalarOp.LT: "<",
    ScalarOp.LE: "<=",
    ScalarOp.GT: ">",
    ScalarOp.GE: ">=",
    ScalarOp.EQ: "==",
    ScalarOp.NE: "!=",
    ScalarOp.AND: "&",
    ScalarOp.OR: "|",
    ScalarOp.XOR: "^",
    ScalarOp.BITAND: "&",
    ScalarOp.BITOR: "|",
    ScalarOp.BITXOR: "^",
}

FLOAT_FUNCTIONS = {
    ScalarOp.MAX: "maximum",
    ScalarOp.MIN: "minimum",
    ScalarOp.MOD: "floor_mod",
    ScalarOp.REM: "mod",
    ScalarOp.POW: "pow",
    ScalarOp.ABS: "abs",
    ScalarOp.SIGN: "sign",
    ScalarOp.SQRT: "sqrt",
    ScalarOp.RECIPROCAL: "reciprocal",
    ScalarOp.EXP: "exp",
    ScalarOp.EXP2: "exp2",
    ScalarOp.LOG: "log",
    ScalarOp.SIN: "sin",
    ScalarOp.COS: "cos",
    ScalarOp.TAN: "tan",
    ScalarOp.ASIN: "asin",
    ScalarOp.ACOS: "acos",
    ScalarOp.ATAN: "atan",
    ScalarOp.SINH: "sinh",
    ScalarOp.COSH: "cosh",
    ScalarOp.TANH: "tanh",
    ScalarOp.ASINH: "asinh",
    ScalarOp.ACOSH: "acosh",
    ScalarOp.ATANH: "atanh",
    ScalarOp.ERF: "erf",
    ScalarOp.SIGMOID: "sigmoid",
    ScalarOp.RATIONAL_SIGMOID: "rational_sigmoid",
    ScalarOp.RATIONAL_TANH: "rational_tanh",
    ScalarOp.LOG1P: "log1p",
    ScalarOp.EXPM1: "expm1",
    ScalarOp.FLOOR: "floor",
    ScalarOp.CEIL: "ceil",
    ScalarOp.RINT: "rint",
    ScalarOp.TRUNC: "trunc",
    ScalarOp.ISNAN: "isnan",
    ScalarOp.ISINF: "isinf",
}

INTEGER_FUNCTIONS = {
    ScalarOp.ADD: "add",
    ScalarOp.SUB: "subtract",
    ScalarOp.MUL: "multiply",
    ScalarOp.NEG: "negate",
    ScalarOp.BITNOT: "invert",
    ScalarOp.MAX: "maximum",
    ScalarOp.MIN: "minimum",
    ScalarOp.ABS: "absolute",
    ScalarOp.SIGN: "sign",
    ScalarOp.POW: "power",
    ScalarOp.SHL: "shift_left",
    ScalarOp.SHR: "shift_right",
}

CHECKED = {
    ScalarOp.DIV: "checked_div",
    ScalarOp.REM: "checked_rem",
    ScalarOp.MOD: "checked_floor_mod",
    ScalarOp.CHECK: "checked_index",
}

# Steps of float reductions; `add_product` is ADD of a product.
ACCUMULATE = {ScalarOp.ADD: "add", ScalarOp.MUL: "multiply"}
ADD_PRODUCT = "add_product"

LIBRARY = "tilewright_kernels.cpu"
_TYPES = tuple(SUFFIX.values())
_PLACES = {
    "pointers": (
        "integer",
        "offset",
        "alone",
        *_TYPES,
        *(f"{v}_{t}" for v in ("stack", "load", "store") for t in _TYPES),
    ),
    "tile": ("zeros_f32", "zeros_f64", "zeros_i32", "store"),
    "matmul": ("matmul", "matmul_rows", "matmul_prefetch"),
    "panels": ("panel_product",),
    "unroll": ("unrolled",),
    "bytes": ("byte_product",),
    "byte_matmul": ("matmul_bytes",),
    "window": ("matmul_window",),
    "columns": (
        "full_f32",
        "full_f64",
        *(
            f"{v}_columns{w}"
            for v in ("add_product", "add", "maximum", "minimum")
            for w in ("", "_window")
        ),
    ),
    "casts": ("select", "to_bool", *(f"to_{t}" for t in _TYPES)),
    "checks": ("report", *CHECKED.values()),
    "integers": tuple(INTEGER_FUNCTIONS.values()),
    "accumulate": tuple(f"{v}_{t}" for v in (*ACCUMULATE.values(), ADD_PRODUCT) for t in _TYPES),
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def module_of(name: str, library: str = LIBRARY) -> str:
    """The module that generated code imports a name from."""
    return f"{library}.{_MODULE_OF.get(name, 'math')}"
