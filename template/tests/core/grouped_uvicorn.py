"""uvicorn in a process group of its own, whose workers have imported the service already."""

import multiprocessing
import os

from uvicorn import _subprocess
from uvicorn.main import main

if __name__ == "__main__":
    os.setsid()
    # Spawned workers would import everything again, which takes seconds.
    setattr(_subprocess, "spawn", multiprocessing.get_context("fork"))  # noqa: B010
    main()
