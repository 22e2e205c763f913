"""What a user can set, in one frozen record; the environment gives the defaults."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tilewright.errors import InputError

DEFAULT_CACHE_BYTES = 2 << 30
DEFAULT_PLAN_BYTES = 4 << 30
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # "quota period" or "max period", in a container


@dataclass(frozen=True)
class Options:
    """Settings of one compilation; every field has a default that is right for most people.

    `threads`: threads that run a plan; None means every core this process may use.
    `cache_dir`: folder of the kernel cache; None means the user's cache folder.
    `cache_bytes`: the least recently used kernels are deleted beyond this size.
    `compile_workers`: processes that help to compile; None lets the cache decide, 0 means none.
    `plan_bytes`: compiled signatures not used for longest are dropped beyond this size.
    `interpret`: run on the reference evaluator, without kernels: slow, and the same results.
    `debug`: what to print on stderr: 0 nothing, 1 where kernels came from, 2 also their schedules,
    3 also their sources.
    `tf32`: on a GPU, matrix products and convolutions of float32 round their factors to TF32 (10
    bits of mantissa, the range of float32) and run on tensor cores; the processor's results do not
    change.
    `dump`: folder that receives every kernel, with its loops and schedule; None means no dump.
    `override`: folder of dumped kernels; those that were changed there take the place of generated
    ones, once they are found to be right.
    """

    threads: int | None = None
    cache_dir: Path | None = None
    cache_bytes: int = DEFAULT_CACHE_BYTES
    compile_workers: int | None = None
    plan_bytes: int = DEFAULT_PLAN_BYTES
    interpret: bool = False
    debug: int = 0
    dump: Path | None = None
    tf32: bool = False
    override: Path | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")
        if self.compile_workers is not None and self.compile_workers < 0:
            raise InputError(f"compile_workers must not be negative, but is {self.compile_workers}")
        if self.plan_bytes < 0:
            raise InputError(f"plan_bytes must not be negative, but is {self.plan_bytes}")
        if self.cache_bytes < 0:
            raise InputError(f"cache_bytes must not be negative, but is {self.cache_bytes}")

    @classmethod
    def from_environment(cls) -> Options:
        """Options read from TILEWRIGHT_THREADS, _CACHE_DIR, _WORKERS, _INTERPRET, _DEBUG, _TF32,
        _DUMP and _OVERRIDE."""
        return cls(
            threads=_integer("TILEWRIGHT_THREADS"),
            cache_dir=_folder("TILEWRIGHT_CACHE_DIR"),
            compile_workers=_integer("TILEWRIGHT_WORKERS"),
            interpret=bool(_integer("TILEWRIGHT_INTERPRET")),
            debug=_integer("TILEWRIGHT_DEBUG") or 0,
            tf32=bool(_integer("TILEWRIGHT_TF32")),
            dump=_folder("TILEWRIGHT_DUMP"),
            override=_folder("TILEWRIGHT_OVERRIDE"),
        )


def available_cores() -> int:
    """Cores that this process may use: by its affinity mask and by its container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux has affinity masks
        cores = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text().split()
        if quota != "max":
            cores = min(cores, -(-int(quota) // int(period)))
    return max(1, cores)


def _integer(variable: str) -> int | None:
    """The variable's value; None where it is unset or empty."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{variable} must be a whole number, not {text!r}") from None


def _folder(variable: str) -> Path | None:
    """The variable's value with `~` expanded; None where it is unset or empty."""
    text = os.environ.get(variable, "").strip()
    return Path(os.path.expanduser(text)) if text else None
