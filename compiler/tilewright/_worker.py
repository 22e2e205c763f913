"""A process that compiles kernels for another one: `python -m tilewright._worker TARGET`.

The first frame on standard output names the environment that it compiles for; then each frame on
standard input is a job, answered by one frame. The end of the input is the end of the worker.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping

from tilewright.errors import CompileError
from tilewright.runtime.workers import COMPILED, FAILED, Compile, read_frame, write_frame


def compiler_for(target: str) -> tuple[Mapping[str, str], Compile]:
    """What decides about the code of a target, and its compiler; imports that target's alone."""
    if target == "cuda":
        from tilewright.runtime.cuda import cache as cuda

        return cuda.environment_fields(), cuda.compile_job
    from tilewright.runtime.cache import environment_fields
    from tilewright.runtime.objects import compile_kernel

    return environment_fields(), compile_kernel


def main() -> None:
    """Answers jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up between the frames
    environment, compile_kernel = compiler_for(sys.argv[1])
    write_frame(answers, json.dumps(environment).encode())
    while (job := read_frame(sys.stdin.buffer)) is not None:
        text, symbol = json.loads(job)
        try:
            answer = COMPILED + compile_kernel(text, symbol)
        except CompileError as error:
            answer = FAILED + str(error).encode()
        write_frame(answers, answer)


if __name__ == "__main__":
    main()
