"""Object code into this process: bytes to addresses, with llvmlite's bindings alone.

LLVM is imported when a kernel is loaded, and Numba never: a process that finds all its kernels on
disk starts without it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tilewright.errors import CompileError
from tilewright.runtime.store import StoredObject

if TYPE_CHECKING:
    import llvmlite.binding as llvm


@dataclass(frozen=True)
class Target:
    """The processor that kernels are compiled for."""

    name: str
    features: str


@cache
def target() -> Target:
    """The host, or what NUMBA_CPU_NAME and NUMBA_CPU_FEATURES ask for.

    Unlike in Numba, the name of another processor does not keep the host's features.
    """
    import llvmlite.binding as llvm

    host = llvm.get_host_cpu_name()
    name = os.environ.get("NUMBA_CPU_NAME") or host
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = llvm.get_host_cpu_features().flatten() if name == host else ""
    return Target(name, features)


@cache
def _initialize() -> str:
    """LLVM is ready to emit code for this process; returns its triple."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return str(llvm.get_process_triple())


def target_machine() -> llvm.TargetMachine:
    """A new LLVM target machine for `target()`, with the code model that the engine loads."""
    import llvmlite.binding as llvm

    triple = _initialize()
    features = target().features
    if triple.startswith("x86_64"):
        # Several processors prefer 256-bit vectors by default; element-wise loops that LLVM
        # vectorises itself are faster with 512. Has no effect without AVX-512.
        features = f"{features},-prefer-256-bit".lstrip(",")
    return llvm.Target.from_triple(triple).create_target_machine(
        cpu=target().name,
        features=features,
        opt=3,
        reloc="static" if triple.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


class Loader:
    """The one symbol space of this process. Code is never unloaded, because it may be running."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._addresses: dict[str, int] = {}
        self._engine: llvm.ExecutionEngine | None = None

    def load(self, items: Sequence[StoredObject]) -> list[int]:
        """Addresses of the items' symbols, in order; loads those that are new.

        The engine crashes on damaged objects and calls address 0 for a missing symbol, so the
        bytes must come from the compiler or from the store, which checks them; symbols are
        checked here before anything is loaded.
        """
        with self._lock:
            new = {i.symbol: i for i in items if i.symbol not in self._addresses}
            for item in new.values():
                missing = missing_symbols(item)
                if missing:
                    raise CompileError(f"{item.symbol} needs {', '.join(missing)}: not found")
            if new:
                self._add(list(new.values()))
            return [self._addresses[i.symbol] for i in items]

    def after_fork(self) -> None:
        """In a forked child: the lock may be held by a thread that is not there any more."""
        self._lock = threading.Lock()

    def _add(self, items: Sequence[StoredObject]) -> None:
        import llvmlite.binding as llvm

        if self._engine is None:
            module = llvm.parse_assembly("")
            module.triple = _initialize()
            self._engine = llvm.create_mcjit_compiler(module, target_machine())
        for item in items:
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(item.data))
        self._engine.finalize_object()
        for item in items:
            address = self._engine.get_function_address(item.symbol)
            if not address:
                raise CompileError(f"the object of {item.symbol} does not export it")
            self._addresses[item.symbol] = address


LOADER = Loader()

with suppress(AttributeError):  # there is no fork on Windows
    os.register_at_fork(after_in_child=LOADER.after_fork)


def missing_symbols(item: StoredObject) -> list[str]:
    """Those of the item's required symbols that this process does not offer."""
    return [name for name in item.requires if not _is_offered(name)]


def _is_offered(name: str) -> bool:
    """Whether LLVM can find the symbol: by itself, or told where the process has it."""
    import llvmlite.binding as llvm

    if llvm.address_of_symbol(name):
        return True
    with suppress(OSError, AttributeError, TypeError):
        function = getattr(ctypes.CDLL(None), name)
        llvm.add_symbol(name, ctypes.cast(function, ctypes.c_void_p).value)
        return True
    return False


SYMBOL_TABLE = 2  # the section type in an ELF file


def undefined_symbols(data: bytes) -> tuple[str, ...]:
    """Names that an ELF64 little-endian object needs from outside, sorted.

    The object tells more than the IR: LLVM may call libm or memset on its own account.
    """
    if data[:6] != b"\x7fELF\x02\x01":
        raise CompileError("only 64-bit little-endian ELF objects are supported")
    sections = list(_sections(data))
    names = set[str]()
    for kind, offset, size, link in sections:
        if kind == SYMBOL_TABLE:
            names.update(_undefined(data, offset, size, strings_at=sections[link][1]))
    return tuple(sorted(names))


def _sections(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """(type, offset, size, link) of each section."""
    (start,) = struct.unpack_from("<Q", data, 0x28)
    width, count = struct.unpack_from("<HH", data, 0x3A)
    for at in range(start, start + count * width, width):
        (kind,) = struct.unpack_from("<I", data, at + 4)
        offset, size, link = struct.unpack_from("<QQI", data, at + 0x18)
        yield kind, offset, size, link


def _undefined(data: bytes, offset: int, size: int, strings_at: int) -> Iterator[str]:
    """Names in one symbol table that belong to no section; entry 0 is always empty."""
    for at in range(offset + 24, offset + size, 24):
        name, _, _, section = struct.unpack_from("<IBBH", data, at)
        if section == 0:
            start = strings_at + name
            yield data[start : data.index(b"\0", start)].decode()
