"""The service's recipes: what they run ends with them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.combinations import parse_combination
from tests.rendering import Renderer

_SECONDS = 30.0


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # Whoever takes over what it left behind may not have taken note of its end yet.
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture(scope="module", params=["uvicorn", "gunicorn"])
def justfile(request: pytest.FixtureRequest, renderer: Renderer) -> Path:
    answers = parse_combination("sqlite+redis+arq").answers
    return renderer.render({**answers, "server": request.param}) / "justfile"


@pytest.mark.parametrize("recipe", ["dev", "serve", "worker", "test", "update"])
def test_what_a_recipe_runs_ends_at_sigterm(recipe: str, justfile: Path, tmp_path: Path) -> None:
    # In the place of uv, which passes SIGTERM on.
    uv, pid = tmp_path / "uv", tmp_path / "pid"
    uv.write_text(f"#!/bin/sh\necho $$ > {pid}.new\nmv {pid}.new {pid}\nexec sleep 600\n")
    uv.chmod(0o755)
    just = subprocess.Popen(
        ["just", "--justfile", justfile, recipe], env={**os.environ, "UV": str(uv)}
    )
    _wait(pid.exists)
    number = int(pid.read_text())
    try:
        just.send_signal(signal.SIGTERM)
        just.wait(_SECONDS)
        _wait(lambda: not _is_running(number))
    finally:
        if _is_running(number):
            os.kill(number, signal.SIGKILL)
