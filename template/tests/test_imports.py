"""Importing the service needs nothing of the machine: no file to write, no network, no clock."""

import os
from pathlib import Path

from tests.fixtures.process import ModuleProcess


def test_importing_all_of_the_service_changes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "output.log"
    process = ModuleProcess(
        "tests.importing", [], folder=tmp_path, environment=os.environ, output=output
    )
    assert process.wait(90) == 0, output.read_text()
