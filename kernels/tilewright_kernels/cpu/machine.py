"""The processor that kernels are compiled for. Imports no Numba, and LLVM late."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache

BITS_PER_BYTE = 8

# LLVM offers no list of the features that a processor name implies, so the usual names stand here.
AVX512_NAMES = [
    "skylake-avx512",
    "cascadelake",
    "cooperlake",
    "cannonlake",
    "icelake-client",
    "icelake-server",
    "tigerlake",
    "rocketlake",
    "sapphirerapids",
    "emeraldrapids",
    "graniterapids",
    "znver4",
    "znver5",
    "x86-64-v4",
]
AVX2_NAMES = [
    "haswell",
    "broadwell",
    "skylake",
    "alderlake",
    "raptorlake",
    "meteorlake",
    "arrowlake",
    "lunarlake",
    "sierraforest",
    "znver1",
    "znver2",
    "znver3",
    "x86-64-v3",
]


@dataclass(frozen=True)
class Machine:
    """What a kernel may use. `features` are those of LLVM's that bear on generated code."""

    name: str
    features: frozenset[str]
    vector_bytes: int
    vector_registers: int

    def lanes(self, bits: int) -> int:
        """Elements of this width in one vector."""
        return self.vector_bytes * BITS_PER_BYTE // bits


@cache
def machine() -> Machine:
    """The host, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES ask for.

    Unlike in Numba, the name of another processor does not keep the host's features.
    """
    import llvmlite.binding as llvm

    host = str(llvm.get_host_cpu_name())
    name = os.environ.get("NUMBA_CPU_NAME") or host
    stated = os.environ.get("NUMBA_CPU_FEATURES")
    if stated is None and name == host:
        features = {f for f, present in llvm.get_host_cpu_features().items() if present}
    else:
        features = _features(name, stated or "")
    vector_bytes, vector_registers = _vectors(features)
    return Machine(name, frozenset(features), vector_bytes, vector_registers)


def _features(name: str, stated: str) -> set[str]:
    """Those that the processor's name implies, then those of a list like `+avx2,-fma`."""
    features: set[str] = set()
    if name in AVX512_NAMES + AVX2_NAMES:
        features |= {"sse4.1", "avx", "avx2", "fma", "f16c"}
    if name in AVX512_NAMES:
        features |= {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    if _is_arm():
        features.add("neon")
    for item in filter(None, (part.strip() for part in stated.split(","))):
        if item.startswith("-"):
            features.discard(item[1:])
        else:
            features.add(item.removeprefix("+"))
    return features


def _is_arm() -> bool:
    import llvmlite.binding as llvm

    return str(llvm.get_process_triple()).startswith(("aarch64", "arm64"))


def _vectors(features: set[str]) -> tuple[int, int]:
    """Bytes of a vector register and how many there are."""
    if "avx512f" in features:
        return 64, 32
    if "avx2" in features:
        return 32, 16
    return (16, 32) if "neon" in features or _is_arm() else (16, 16)


def has_feature(name: str) -> bool:
    return name in machine().features


def vector_bytes() -> int:
    return machine().vector_bytes


def vector_registers() -> int:
    return machine().vector_registers


def vector_register_names() -> list[str]:
    """As assembly names them, by their lowest part."""
    letter = "v" if _is_arm() else "xmm"
    return [f"{letter}{k}" for k in range(vector_registers())]


def lanes(bits: int) -> int:
    """Elements of this width in one vector."""
    return machine().lanes(bits)


def tile_rows(vectors: int) -> int:
    """The most rows that a tile this many vectors wide can have without spilling.

    One register holds the broadcast element of the left operand, `vectors` a row of the right one.
    """
    return max(1, (vector_registers() - vectors - 1) // vectors)


def multiplies_bytes() -> bool:
    """Whether one instruction adds up products of bytes, in vectors of the usual length."""
    return has_feature({64: "avx512vnni", 32: "avxvnni"}.get(vector_bytes(), "none"))


def describe() -> str:
    """One line for people."""
    m = machine()
    return f"{m.name}: {m.vector_registers} vector registers of {m.vector_bytes} bytes"
