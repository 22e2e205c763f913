"""CUDA kernels from text to machine code, and from memory or disk the second time."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cuda_harness import instructions, needs_compiler, needs_sass, source_of, uses
from tilewright.dtypes import DType
from tilewright.errors import CompileError
from tilewright.options import Options
from tilewright.runtime.cuda import cache as cuda_cache
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.kernel import CompiledKernel, KernelSource, Usage

BODY = "i = block() * 128 + thread()\nif i < n0:\n    p1[i] = -(p0[i] * p0[i] + p0[i])"
SOURCE = source_of({"threads": "block, thread"}, BODY, (DType.F32, DType.F32))


def cache_in(folder: Path, workers: int = 0) -> CudaKernelCache:
    return CudaKernelCache(Options(cache_dir=folder, compile_workers=workers))


def variants(count: int) -> list[KernelSource]:
    return [replace(SOURCE, text=SOURCE.text.replace("128", str(128 + k))) for k in range(count)]


@needs_compiler
def test_sources_come_from_memory_and_disk(tmp_path: Path) -> None:
    first = cache_in(tmp_path)
    [kernel] = first.load([SOURCE])
    assert first.load([SOURCE, SOURCE]) == [kernel, kernel]
    stats = first.stats()
    assert (stats.compiled, stats.memory, stats.disk) == (1, 1, 0)
    second = cache_in(tmp_path)
    assert second.load([SOURCE]) == [kernel]
    assert (second.stats().compiled, second.stats().disk) == (0, 1)


@needs_compiler
def test_disk_needs_no_numba(tmp_path: Path) -> None:
    cache_in(tmp_path).load([SOURCE])
    program = f"""
import sys
from pathlib import Path
from tilewright.options import Options
from tilewright.runtime.cuda.cache import CudaKernelCache
from tilewright.runtime.cuda.kernel import KernelSource
cache = CudaKernelCache(Options(cache_dir=Path({str(tmp_path)!r})))
cache.load([KernelSource.from_json({SOURCE.as_json()!r})])
assert cache.stats().disk == 1
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@needs_compiler
def test_everything_of_a_source_is_in_its_key(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    others = [
        replace(SOURCE, text=SOURCE.text + "\n"),
        replace(SOURCE, pointers=(DType.F64, DType.F64)),
        replace(SOURCE, threads=256),
        replace(SOURCE, architecture="sm_90a"),
    ]
    kernels = cache.load([SOURCE, *others])
    assert cache.stats().compiled == 5
    assert len({k.entry for k in kernels}) == 5
    assert len({k.cubin for k in kernels}) == 5


@needs_compiler
def test_damage_is_compiled_again(tmp_path: Path) -> None:
    [kernel] = cache_in(tmp_path).load([SOURCE])
    [file] = [p for p in tmp_path.rglob("*") if p.is_file()]
    file.write_bytes(file.read_bytes()[:-1])
    again = cache_in(tmp_path)
    assert again.load([SOURCE]) == [kernel]
    assert again.stats().compiled == 1


@needs_compiler
def test_another_toolchain_is_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache_in(tmp_path).load([SOURCE])
    fields = cuda_cache.environment_fields() | {"nvjitlink": "13.0.0"}
    monkeypatch.setattr(cuda_cache, "environment_fields", lambda: fields)
    later = cache_in(tmp_path)
    later.load([SOURCE])
    assert (later.stats().compiled, later.stats().disk) == (1, 0)


@needs_compiler
def test_workers_give_the_same_code(tmp_path: Path) -> None:
    reports = list[tuple[int, int]]()
    sources = variants(6)
    helped = cache_in(tmp_path / "helped", workers=1)
    found = helped.load(sources, lambda done, total: reports.append((done, total)))
    assert found == cache_in(tmp_path / "alone").load(sources)
    assert reports == [(n, 6) for n in range(7)]


@needs_compiler
def test_code_does_not_depend_on_what_was_compiled_before(tmp_path: Path) -> None:
    [first] = cache_in(tmp_path / "first").load([SOURCE])
    cache_in(tmp_path / "others").load(variants(2))
    [again] = cache_in(tmp_path / "again").load([SOURCE])
    assert first == again


@needs_compiler
def test_a_wrong_text_shows_itself(tmp_path: Path) -> None:
    wrong = replace(SOURCE, text=SOURCE.text.replace("thread()", "thread(1)"))
    with pytest.raises(CompileError, match=r"did not compile for sm_80(?s:.)*thread\(1\)"):
        cache_in(tmp_path).load([wrong])


@needs_sass
def test_elementwise_arithmetic_is_not_fused(tmp_path: Path) -> None:
    for architecture in ("sm_80", "sm_90a"):
        [kernel] = cache_in(tmp_path).load([replace(SOURCE, architecture=architecture)])
        found = instructions(kernel)
        assert uses(found, "FMUL") and uses(found, "FADD") and not uses(found, "FFMA")


@needs_sass
def test_spills_are_reported(tmp_path: Path) -> None:
    body = """
a = stack_f32(400)
for k in range(400):
    a[k] = p0[k * 1024 + thread()]
for r in range(n0):
    for k in range(400):
        a[k] = a[k] * a[(k * 7 + 3) % 400]
for k in range(400):
    p1[k * 1024 + thread()] = a[k]
"""
    imports = {"threads": "thread", "pointers": "stack_f32"}
    pointers = (DType.F32, DType.F32)
    source = source_of(imports, body, pointers, threads=1024)
    [kernel] = cache_in(tmp_path).load([source])
    assert kernel.usage.registers <= 64  # the most that 1024 threads leave to each
    assert kernel.usage.local_bytes >= 1600


def test_kernels_survive_as_bytes() -> None:
    kernel = CompiledKernel("tw_1", b"\0\1\2", "// PTX", Usage(10, 0, 128, 0))
    assert CompiledKernel.from_bytes(kernel.as_bytes()) == kernel
    assert KernelSource.from_json(SOURCE.as_json()) == SOURCE
