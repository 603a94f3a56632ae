"""Tells a person which combination is at which step, and at the end what was proven."""

from collections import Counter
from dataclasses import dataclass, field
from time import monotonic

import pytest

STEPS_FILE = "tests/test_combination.py"


@dataclass(eq=False)
class Progress:
    """The plugin of the process that reports; workers of xdist send it their reports."""

    reporter: pytest.TerminalReporter
    _started: dict[str, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _tests: Counter[str] = field(default_factory=Counter)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say that a combination begins a step that takes a while."""
        if (step := _step(nodeid)) is not None:
            self._started[nodeid] = monotonic()
            self._say(f"{step[0]}: {step[1]} ...")

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> tuple[str, str, str] | None:
        """Count the steps that passed without a dot each: their own lines tell."""
        is_step = isinstance(report, pytest.TestReport) and _step(report.nodeid) is not None
        if is_step and report.passed and getattr(report, "when", "") == "call":
            return "passed", "", ""
        return None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Say how a step of a combination ended."""
        if (step := _step(report.nodeid)) is None:
            return
        combination, name = step
        self._seconds[combination] = self._seconds.get(combination, 0) + report.duration
        properties = dict(report.user_properties)
        if report.when == "call" or report.failed:
            ran = properties.get("suite_tests")
            self._tests[combination] += int(str(ran or 0))
            count = f", {ran} tests" if ran else ""
            self._say(f"{combination}: {name} {report.outcome}, {report.duration:.1f} s{count}")

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self) -> None:
        """Say how many combinations and how many of their tests were run, and for how long."""
        if not self._seconds:
            return
        self.reporter.section("combinations")
        for combination, seconds in sorted(self._seconds.items()):
            tests = self._tests[combination]
            self.reporter.write_line(f"{combination}: {tests} own tests, {seconds:.0f} s")
        ran = sum(count > 0 for count in self._tests.values())
        self.reporter.write_line(
            f"combinations rendered: {len(self._seconds)}; whose own tests passed: {ran}, "
            f"with {self._tests.total()} tests"
        )

    def _say(self, line: str) -> None:
        self.reporter.ensure_newline()
        self.reporter.write_line(line)


def _step(nodeid: str) -> tuple[str, str] | None:
    # tests/test_combination.py::test_types_are_strict[sqlite+example]@sqlite+example
    path, _, rest = nodeid.partition("::")
    if path != STEPS_FILE or "[" not in rest:
        return None
    name, _, parameter = rest.partition("[")
    return parameter.partition("]")[0], name.removeprefix("test_").replace("_", " ")
