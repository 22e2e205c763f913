"""The timeline of a profile as trace events, which Perfetto and Chrome's tracing show.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tilewright.runtime.profile import Profile
from tilewright.runtime.timeline import CALL, THREADS, Slice

PROCESS = 1


def write(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Writes the file."""
    Path(path).write_text(json.dumps(trace(profile)), encoding="utf-8")


def trace(profile: Profile) -> dict[str, Any]:
    """The whole file: names of tracks, then slices in order of their begin."""
    tracks = sorted({CALL, *(s.track for s in profile.timeline)})
    events = [_named("process_name", profile.model, CALL)]
    for track in tracks:
        events.append(_named("thread_name", _track_name(track), track))
        events.append(_sorted(track))
    events += _slices(profile)
    about = {"model": profile.model, "machine": str(profile.ceilings)}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": about}


def _track_name(track: int) -> str:
    if track == CALL:
        return "call: host steps and kernels"
    return "tasks of the caller" if track == THREADS else f"tasks of helper {track - THREADS}"


def _named(what: str, name: str, track: int) -> dict[str, Any]:
    return {"ph": "M", "pid": PROCESS, "tid": track, "name": what, "args": {"name": name}}


def _sorted(track: int) -> dict[str, Any]:
    named = {"ph": "M", "pid": PROCESS, "tid": track, "name": "thread_sort_index"}
    return named | {"args": {"sort_index": track}}


def _slices(profile: Profile) -> Iterator[dict[str, Any]]:
    for s in profile.timeline:
        yield {
            "ph": "X",
            "pid": PROCESS,
            "tid": s.track,
            "name": s.name,
            "cat": s.kind,
            "ts": s.start / 1000,  # microseconds
            "dur": (s.end - s.start) / 1000,
            "args": _about(profile, s),
        }


def _about(profile: Profile, s: Slice) -> dict[str, Any]:
    if s.step < 0:
        return {"model": profile.model}
    if s.kind == "task":
        return {"task": s.task}
    step = profile.steps[s.step]
    found: dict[str, Any] = {"computes": step.operators}
    if step.kind == "kernel":
        each = max(step.calls, 1)
        found |= {"tasks": step.tasks, "flops": step.flops / each, "bytes": step.bytes / each}
        found["bound by"] = step.bound
    return found
