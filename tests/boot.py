"""Installs combinations on a chosen Python, boots each service and calls every route."""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.combinations import COMBINATIONS, parse_combination
from tests.rendering import Renderer
from tests.service import clean_environment
from tests.snapshot import copy_template

SCENARIO = Path(__file__).parent / "inside" / "boot.py"
RESOLUTIONS = ("highest", "lowest-direct")
SERVERS = ("uvicorn", "gunicorn")
_TAIL_LINES = 60


def boot(answers: dict[str, Any], renderer: Renderer, environment: dict[str, str]) -> str | None:
    """Do so for one combination.

    Args:
        answers: What to render.
        renderer: Renders the working tree.
        environment: Where uv installs, with what, and for which Python.

    Returns:
        The end of the output if something failed.
    """
    folder = renderer.render(answers)
    uv = os.environ.get("UV", "uv")
    for command in (
        [uv, "lock", "--quiet"],
        [uv, "sync", "--quiet", "--locked"],
        # As a module's, its imports are looked for in the service's folder.
        [uv, "run", "--no-sync", "python", "-c", SCENARIO.read_text()],
    ):
        result = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if result.returncode:
            return "\n".join(result.stdout.splitlines()[-_TAIL_LINES:])
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer 1 if a combination could not be installed or booted, or a route failed."""
    parser = argparse.ArgumentParser(prog="just boot", description=__doc__)
    parser.add_argument("combinations", nargs="*", metavar="COMBINATION", help="default: all")
    parser.add_argument("--python", default=sys.executable, help="a version or a path, for uv")
    parser.add_argument("--resolution", choices=RESOLUTIONS, default=RESOLUTIONS[0])
    parser.add_argument("--server", choices=SERVERS, default=SERVERS[0])
    options = parser.parse_args(arguments)
    combinations = [parse_combination(name) for name in options.combinations] or COMBINATIONS
    failed = 0
    with TemporaryDirectory(prefix="boot-") as temporary:
        folder = Path(temporary)
        # The database server runs as another user when we are root.
        folder.chmod(0o711)
        renderer = Renderer(copy_template(folder / "template"), folder / "renders")
        environment = clean_environment()
        if options.python != sys.executable and not Path(options.python).exists():
            # A version that this machine lacks is one that uv brings.
            del environment["UV_PYTHON_DOWNLOADS"]
        environment["UV_PYTHON"] = options.python
        environment["UV_RESOLUTION"] = options.resolution
        # One after the other in the same place, so that modules are compiled once.
        environment["UV_PROJECT_ENVIRONMENT"] = str(folder / "environment")
        for combination in combinations:
            started = time.monotonic()
            answers = {**combination.answers, "server": options.server}
            problem = boot(answers, renderer, environment)
            verdict = "failed" if problem else "ok"
            seconds = time.monotonic() - started
            sys.stdout.write(f"{combination} {verdict} in {seconds:.0f} s\n")
            sys.stdout.write(f"{problem}\n" if problem else "")
            sys.stdout.flush()
            failed += problem is not None
    sys.stdout.write(f"{len(combinations) - failed} passed, {failed} failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
