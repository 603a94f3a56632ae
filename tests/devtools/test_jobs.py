import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.heartbeat import find_problem
from tests.fixtures.jobs import eventually
from tests.fixtures.server import ServedProcess

_PROJECT = Path(__file__).parents[2]


def test_the_recipes_run_the_worker_and_the_command_for_dead_letters() -> None:
    just = Path(sys.executable).with_name("just")

    def run(*recipe: str) -> str:
        command = [str(just), "--justfile", str(_PROJECT / "justfile"), *recipe]
        # Prints what it would run, a word a line.
        env = {**os.environ, "UV": "printf '%s\\n'"}
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
        return result.stdout

    assert run("worker").splitlines() == ["run", "python", "-m", "devtools.dev", "worker"]
    payload = '{"customer": "Ada Lovelace"}'
    words = run("jobs", "retry", "--payload", payload).splitlines()
    assert words[3:] == ["devtools.dev", "jobs", "retry", "--payload", payload]


@pytest.fixture
def working(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServedProcess]:
    """What `just worker` starts, with its heartbeat in the test's folder."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("WORKER_HEARTBEAT_FILE", str(tmp_path / "heartbeat.json"))
    monkeypatch.setenv("PYTHONPATH", str(_PROJECT))
    output = tmp_path / "output.log"
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "devtools.dev", "worker"],
            cwd=tmp_path,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    yield ServedProcess("", process, output)
    process.kill()
    process.wait()


async def test_just_worker_migrates_then_works_until_it_is_stopped(
    working: ServedProcess, tmp_path: Path
) -> None:
    async def problem() -> str:
        assert working.process.poll() is None, working.logs()
        return find_problem(tmp_path / "heartbeat.json", ready=True) or ""

    await eventually(problem, lambda found: not found)
    working.process.terminate()
    assert await working.wait() == 0, working.logs()
