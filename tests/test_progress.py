"""What a run says at its end."""

from collections.abc import Sequence

import pytest

from tests.groups import STEPS_FILE
from tests.progress import Progress

SUITE = f"{STEPS_FILE}::test_its_own_tests_pass[sqlite]"
TYPES = f"{STEPS_FILE}::test_types_are_strict[sqlite]"
UPDATE = "tests/update/test_update.py::test_the_answers_survive_an_update"
BROWSER = "tests/test_browser.py::test_it_forgets_old_frames"


class Terminal:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def section(self, title: str) -> None:
        self.lines.append(title)

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def ensure_newline(self) -> None:
        pass


def report(
    nodeid: str, seconds: float, processor: float, *, tests: int = 0, skipped: str = ""
) -> pytest.TestReport:
    properties: Sequence[tuple[str, object]] = [
        ("suite_tests", tests),
        ("processor_seconds", processor),
    ]
    return pytest.TestReport(
        nodeid=nodeid,
        location=("", 0, ""),
        keywords={},
        outcome="skipped" if skipped else "passed",
        longrepr=("test_browser.py", 1, f"Skipped: {skipped}") if skipped else None,
        when="call",
        duration=seconds,
        user_properties=list(properties),
    )


def said_about(*reports: pytest.TestReport) -> list[str]:
    terminal = Terminal()
    progress = Progress(terminal)  # type: ignore[arg-type]
    for each in reports:
        progress.pytest_runtest_logreport(each)
    progress.pytest_terminal_summary()
    return terminal.lines


def test_each_stage_and_the_costliest_combinations_are_told() -> None:
    lines = said_about(report(SUITE, 40, 30, tests=500), report(TYPES, 4, 3), report(UPDATE, 2, 1))
    assert "suites: 40 s, 30 s of processor time" in lines
    assert "static: 4 s, 3 s of processor time" in lines
    assert "updates: 2 s, 1 s of processor time" in lines
    assert "costliest: sqlite, 44 s, 33 s of processor time" in lines
    assert "sqlite: 500 own tests, 44 s, 33 s of processor time" in lines
    assert any(line.startswith("all: ") and "34 s of processor" in line for line in lines)
    assert "skipped: nothing" in lines
    assert lines[-1].endswith("whose own tests passed: 1, with 500 tests")


def test_what_was_skipped_is_named_with_its_reason() -> None:
    lines = said_about(
        report(SUITE, 40, 30, tests=500), report(BROWSER, 0, 0, skipped="install Chromium")
    )
    assert "skipped: 1 tests: Skipped: install Chromium" in lines
