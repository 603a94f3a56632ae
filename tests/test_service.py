"""The run of a service's suite: what fails once is said, what fails twice fails."""

import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest

from tests.environments import Environments
from tests.service import CommandFailedError, SecondAttemptWarning, Service

ONCE = """
    from pathlib import Path

    def fail_once(name):
        tried = Path(name)
        if not tried.exists():
            tried.touch()
            raise AssertionError("only the first time")
"""


class Here:
    """The environment of this run, which has pytest."""

    def prepare(self, _: Path, __: Mapping[str, str]) -> Path:
        """Use this one."""
        return Path(sys.prefix)


def suite(folder: Path, *tests: str) -> Service:
    """A service that has these tests."""
    lines = [dedent(ONCE), "def test_right(): pass", *map(dedent, tests)]
    (folder / "test_it.py").write_text("\n".join(lines))
    return Service(folder, "render it", cast("Environments", Here()))


def flaky(name: str) -> str:
    """A test that passes at its second attempt."""
    return f"def test_{name}(): fail_once('{name}')"


def test_what_passes_alone_counts_and_is_warned_about(tmp_path: Path) -> None:
    service = suite(tmp_path, flaky("one"), flaky("other"))

    with pytest.warns(SecondAttemptWarning) as warned:
        result = service.run_suite(1, measured=False)

    assert (result.passed, result.skipped) == (3, 0)
    said = str(warned[0].message)
    assert said.startswith("test_it.py::test_one, test_it.py::test_other\n")
    assert "only the first time" in said


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param(["def test_wrong(): assert 1 == 2"], id="one that always fails"),
        pytest.param([flaky("one"), flaky("two"), flaky("three")], id="three that fail once"),
        pytest.param(["import os", "def test_hangs(): os._exit(1)"], id="one that ends the run"),
    ],
)
def test_whatever_else_goes_wrong_fails(tmp_path: Path, tests: list[str]) -> None:
    with pytest.raises(CommandFailedError):
        suite(tmp_path, *tests).run_suite(1, measured=False)
