"""Runs the update and sends it a signal before its nth step beyond the merge."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devtools import update, working_tree

number, moment = signal.Signals(int(sys.argv[1])), int(sys.argv[2])
sys.argv[1:3] = []
steps = 0


def counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Count the calls of a function, and send the signal before one of them."""

    def call(*arguments: Any) -> Any:
        global steps
        steps += 1
        if steps == moment:
            sys.stdout.write(f"killed before {function.__name__}\n")
            sys.stdout.flush()
            os.kill(os.getpid(), number)
        return function(*arguments)

    return call


for name in ("_copy", "_put", "_remove", "_copy_objects", "_digest"):
    setattr(working_tree, name, counted(getattr(working_tree, name)))
Path.touch = counted(Path.touch)  # type: ignore[method-assign]
update.main()
