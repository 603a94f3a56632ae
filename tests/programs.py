"""Programs that come with the harness's own environment: linters and validators."""

import subprocess
import sys
from pathlib import Path


def program(name: str) -> str:
    """Where one of them is."""
    return str(Path(sys.executable).with_name(name))


def run(*command: str | Path) -> None:
    """Run a command, which must end with 0."""
    result = subprocess.run(
        list(map(str, command)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
