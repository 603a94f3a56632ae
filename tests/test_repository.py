"""The repository of the template itself: its harness is as clean as what it renders."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.snapshot import ROOT, template_files

MACHINE = re.compile(r"/(root|home/[a-z]|Users/[A-Z]|work/|opt/)\b")


@pytest.mark.parametrize(
    "command",
    [("ruff", "format", "--check", "tests"), ("ruff", "check", "tests"), ("mypy",)],
    ids=str,
)
def test_the_harness_is_clean(command: tuple[str, ...]) -> None:
    executable = Path(sys.executable).with_name(command[0])
    result = subprocess.run(
        [executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_path_of_a_machine() -> None:
    found = []
    for name in template_files():
        if name == Path(__file__).relative_to(ROOT):
            continue
        data = (ROOT / name).read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode().splitlines(), start=1):
            if MACHINE.search(line) or str(ROOT) in line:
                found.append(f"{name}:{number}: {line.strip()}")
    assert found == []


def test_no_lock_or_secret_is_committed() -> None:
    names = [name.as_posix() for name in template_files()]
    assert [n for n in names if n.endswith(("uv.lock", "/.env")) or n == ".env"] == []


def test_ci_runs_the_tests_with_a_script_that_can_be_executed() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
