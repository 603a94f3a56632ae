"""Runs the migration pipeline on a database without any table; test_pipelines.py copies it.

PIPELINES names a file with a list of cases: the steps, their folder and variables, and whether
they must pass.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

CASES: list[dict[str, Any]] = json.loads(Path(os.environ["PIPELINES"]).read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_database_of_the_main_branch_is_migrated(
    case: dict[str, Any], scratch_database_url: str
) -> None:
    environment = {**case["environment"], "DATABASE_URL": scratch_database_url}
    for step in case["steps"]:
        result = subprocess.run(
            ["bash", "-e", "-c", step["script"]],
            cwd=step["folder"],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            break
    said = result.stdout + result.stderr
    assert (result.returncode == 0) == (case["failure"] is None), said
    assert (case["failure"] or "") in said
