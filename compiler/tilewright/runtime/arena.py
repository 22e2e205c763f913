"""Where the intermediate results of a plan lie in one piece of memory."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tilewright.errors import UnsupportedError
from tilewright.fusion.lower import Lowered
from tilewright.ops.tensor import Constant, footprint
from tilewright.runtime.memory import MAX_BYTES, Lifetime, place


def arena(
    lowered: Sequence[Lowered], elsewhere: Collection[str], lasting: Collection[str] = ()
) -> tuple[dict[str, int], int]:
    """Offsets in bytes by the names of the tensors that kernels pass on, and the bytes in all.

    Tensors in `elsewhere` have memory of their own; those in `lasting` are needed to the end.
    Raises UnsupportedError for more than any machine has.
    """
    spans: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for step, n in enumerate(lowered):
        for t in n.tensors:
            if isinstance(t, Constant) or t.name in elsewhere:
                continue
            spans.setdefault(t.name, [step, step])[1] = step
            sizes[t.name] = footprint(t) * t.dtype.itemsize
    for name in spans:
        if name in lasting:
            spans[name][1] = len(lowered)
    lifetimes = [Lifetime(sizes[name], a, b) for name, (a, b) in spans.items()]
    offsets, nbytes = place(lifetimes)
    if nbytes > MAX_BYTES:
        raise UnsupportedError(f"the plan needs {nbytes >> 30} GiB for intermediate results")
    return dict(zip(spans, offsets, strict=True)), nbytes
