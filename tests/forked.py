"""Processes that begin with all that is imported: a kill or a limit costs no start of torch."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def fork(work: Callable[[], object], errors: int | None = None) -> int:
    """Return the process that does `work`, and writes its error's last line to a descriptor."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        work()
        code = 0
    except BaseException as error:
        line = "".join(traceback.format_exception_only(error))
        if errors is not None:
            os.write(errors, line.encode())
        else:
            sys.stderr.write(line)
    finally:
        os._exit(code)


def error_of(work: Callable[[], object]) -> str:
    """Return the last line of the error of `work` in a process of its own; empty if it has none."""
    read, write = os.pipe()
    process = fork(work, write)
    os.close(write)
    with os.fdopen(read) as lines:
        found = lines.read()
    os.waitpid(process, 0)
    return found
