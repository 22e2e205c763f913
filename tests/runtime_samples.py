"""Small kernels in the binary interface of generated ones, for the tests of the runtime.

Importing this module imports no Numba, so a test can hold the texts before a cold start.
"""

from __future__ import annotations

import os
import subprocess
import sys

SCALE = """\
from runtime_intrinsics import argument, floats


def kernel(task, args):
    x = floats(argument(args, 0))
    y = floats(argument(args, 1))
    n = argument(args, 2)
    for i in range(task * n, task * n + n):
        y[i] = x[i] * x[i] + x[i]
"""

COUNT = """\
from runtime_intrinsics import argument, increment


def kernel(task, args):
    increment(args, task)
"""

NOTHING = """\
def kernel(task, args):
    pass
"""


def constant(value: int) -> str:
    """A kernel that writes `value` to element `task`; every value is another text."""
    return f"""\
from runtime_intrinsics import put


def kernel(task, args):
    put(args, task, {value})
"""


def run_python(code: str, **environment: str) -> str:
    """Standard output of a fresh interpreter that sees the same modules; it must succeed."""
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
