"""Which products of a plan a library computes: those that were measured to be faster with it."""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.codegen.cuda import Launch
from tilewright.fusion.decide import Pick, Point
from tilewright.fusion.lower import Lowered
from tilewright.loops.structure import structure
from tilewright.runtime.cuda.device import Library
from tilewright.schedule.library import Gemm, LibraryProduct, library_product

CUBLAS = "cublasGemmStridedBatchedEx"
OURS, LIBRARYS = 0, 1


def with_library(
    lowered: Sequence[Lowered], library: Library | None, pick: Pick
) -> tuple[dict[int, Gemm], list[Lowered]]:
    """The products that go to the library, by their places among the kernels, and all kernels.

    Without a library, or a measurement that speaks for it, everything is a kernel of ours.
    """
    products: dict[int, Gemm] = {}
    made: list[Lowered] = []
    for n in lowered:
        found = library_product(n) if library is not None else None
        if library is None or found is None or pick(_point(n, found, library)) == OURS:
            made.append(n)
            continue
        products[len(made)] = found.gemm
        made += [found.lowered, *([found.rest] if found.rest else [])]
    return products, made


def _point(n: Lowered, found: LibraryProduct, library: Library) -> Point:
    g = found.gemm
    return Point(
        "library",
        lambda: (library.version, structure(n.kernel)),
        (OURS, LIBRARYS),
        OURS,
        float(g.batch * g.rows * g.columns * g.depth),
        {OURS: "a kernel of ours", LIBRARYS: f"cuBLAS {library.version} for {n.group.label}"},
    )


def library_launch(gemm: Gemm) -> Launch:
    """What stands in a plan for a kernel that is the library's."""
    text = f"# computed by cuBLAS ({CUBLAS}), not by a kernel of ours\n# {gemm}\n"
    return Launch(text, (), (), blocks=1, threads=1, shared_bytes=0, checks=0)
