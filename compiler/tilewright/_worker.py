"""A process that compiles kernels for another one: `python -m tilewright._worker`.

The first frame on standard output names the environment that it compiles for; then each frame on
standard input is a job, answered by one frame. The end of the input is the end of the worker.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from tilewright.errors import CompileError
from tilewright.runtime.cache import environment_fields
from tilewright.runtime.objects import compile_kernel
from tilewright.runtime.workers import COMPILED, FAILED, read_frame, write_frame


def main() -> None:
    """Answers jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not end up between the frames
    write_frame(answers, json.dumps(environment_fields()).encode())
    while (job := read_frame(sys.stdin.buffer)) is not None:
        text, symbol = json.loads(job)
        try:
            answer = COMPILED + compile_kernel(text, symbol)
        except CompileError as error:
            answer = FAILED + str(error).encode()
        write_frame(answers, answer)


if __name__ == "__main__":
    main()
