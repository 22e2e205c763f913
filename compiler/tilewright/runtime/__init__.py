"""runtime of tilewright."""

from __future__ import annotations

from tilewright.runtime.pinned import Pin, Pins, pins

__all__ = ["Pin", "Pins", "pins"]
