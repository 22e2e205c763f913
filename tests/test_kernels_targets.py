"""The other kernel tests, compiled for lesser processors than this one."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright_kernels.cpu import machine

HERE = Path(__file__).parent
KERNELS = HERE.parent / "kernels"
FILES = ("test_kernels_pointers.py", "test_kernels_tile.py", "test_kernels_math.py")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(KERNELS), str(HERE), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86 names")
needs_avx2 = pytest.mark.skipif(machine.vector_bytes() < 32, reason="this machine cannot run AVX2")


@needs_x86
@pytest.mark.parametrize(
    ("cpu", "features", "vectors"),
    [
        ("znver5", "", (64, 32)),
        ("skylake-avx512", "-avx512f", (32, 16)),
        ("haswell", "", (32, 16)),
        ("x86-64", "", (16, 16)),
        ("x86-64", "+avx2,+fma", (32, 16)),
    ],
)
def test_vectors_follow_the_environment(cpu: str, features: str, vectors: tuple[int, int]) -> None:
    code = (
        "from tilewright_kernels.cpu.machine import machine\n"
        "print(machine().vector_bytes, machine().vector_registers)"
    )
    result = run(sys.executable, "-c", code, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features)
    assert result.stdout.split() == [str(v) for v in vectors], result.stderr


def test_machine_imports_no_numba() -> None:
    code = "import sys, tilewright_kernels.cpu.machine; print('numba' in sys.modules)"
    assert run(sys.executable, "-c", code).stdout.strip() == "False"


@needs_x86
@needs_avx2
@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
def test_kernels_are_right_on(cpu: str) -> None:
    """AVX2 has half the registers; the base line has neither FMA nor instructions for halves."""
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:randomly",
    )
    files = [str(HERE / name) for name in FILES]
    result = run(*command, *files, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES="")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
