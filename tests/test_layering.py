"""The order of the folders is the direction of imports, and no file grows without end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from runtime_samples import run_python

ROOT = Path(__file__).parent.parent
TILEWRIGHT = ROOT / "compiler" / "tilewright"
KERNELS = ROOT / "kernels" / "tilewright_kernels"

ORDER = (
    ("errors", "dtypes", "options"),
    ("loops",),
    ("ops",),
    ("graph",),
    ("fusion",),
    ("schedule",),
    ("codegen",),
    ("runtime",),
    ("driver", "_worker"),
    ("backend",),
    ("__init__",),
    ("explore",),
)
"""Parts of the package: each imports itself and what comes before it."""

LEVEL = {part: level for level, parts in enumerate(ORDER) for part in parts}
READS_ONNX = {"graph", "driver", "backend", "explore"}
"""The driver and the backend take ONNX's classes as arguments; `graph` alone looks inside."""

MOST_LINES = 475


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def part_of(path: Path) -> str:
    """The folder directly under the package that holds the file, or the file's own name."""
    return path.relative_to(TILEWRIGHT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, n.name) for n in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                assert level == 0 and module, f"{path}:{node.lineno} is a relative import"
                yield from ((node.lineno, f"{module}.{n.name}") for n in names)


def imported_part(name: str) -> str | None:
    """The part of this package that an import reaches; None for other packages."""
    top, *rest = name.split(".")
    if top != "tilewright":
        return None
    return rest[0] if rest and rest[0] in LEVEL else "__init__"


def test_every_part_has_its_place() -> None:
    unknown = {part_of(f) for f in files(TILEWRIGHT)} - LEVEL.keys()
    assert not unknown, f"add {sorted(unknown)} to ORDER"


def test_imports_follow_the_order() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(TILEWRIGHT)
        for line, name in imports(path)
        if (part := imported_part(name)) and LEVEL[part] > LEVEL[part_of(path)]
    ]
    assert not wrong, "\n".join(wrong)


def test_onnx_stays_at_the_edge() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(TILEWRIGHT)
        for line, name in imports(path)
        if name.split(".")[0] == "onnx" and part_of(path) not in READS_ONNX
    ]
    assert not wrong, "\n".join(wrong)


def test_kernels_know_nothing_of_the_compiler() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files(KERNELS)
        for line, name in imports(path)
        if imported_part(name) or name.split(".")[0] == "onnx"
    ]
    assert not wrong, "\n".join(wrong)


def test_files_stay_short() -> None:
    lengths = {f: len(f.read_text(encoding="utf-8").splitlines()) for f in files(ROOT / "compiler")}
    lengths |= {f: len(f.read_text(encoding="utf-8").splitlines()) for f in files(KERNELS)}
    long = [f"{f.relative_to(ROOT)}: {n} lines" for f, n in lengths.items() if n > MOST_LINES]
    assert not long, "\n".join(long)


def test_importing_the_package_imports_no_other_target_and_no_operators() -> None:
    """They are slow to import, and a program may never need them."""
    code = (
        "import sys, tilewright\n"
        "late = ('tilewright.runtime.cuda', 'tilewright.explore', 'tilewright.ops.convolution', "
        "'numba', 'llvmlite', 'onnx.reference')\n"
        "print(*[m for m in sys.modules if m.startswith(late)])"
    )
    assert not run_python(code).strip()
