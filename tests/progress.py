"""Tells a person which combination is at which step, and at the end what that proved and cost."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from time import monotonic

import pytest

from tests.costs import Costs
from tests.groups import STEPS_FILE, group_of

# By the first that the node id begins with.
STAGES = (
    (f"{STEPS_FILE}::test_a_second_render", "render"),
    (f"{STEPS_FILE}::test_nothing_is_left", "render"),
    (f"{STEPS_FILE}::test_the_tree", "render"),
    (f"{STEPS_FILE}::test_its_api", "render"),
    ("tests/test_files.py", "render"),
    (f"{STEPS_FILE}::test_its_environment", "install"),
    (f"{STEPS_FILE}::test_its_own_tests", "suites"),
    (STEPS_FILE, "static"),
    ("tests/test_devtools.py", "devtools"),
    ("tests/update/", "updates"),
)
OTHER_STAGE = "template"
COSTLIEST = 5


@dataclass
class Cost:
    """Time in seconds: as clocks show it, added up over the workers, and of processors."""

    wall: float = 0
    processor: float = 0

    def add(self, report: pytest.TestReport, processor: float) -> None:
        """Add one phase of a test."""
        self.wall += report.duration
        self.processor += processor

    def __str__(self) -> str:
        """Both, for people."""
        return f"{self.wall:.0f} s, {self.processor:.0f} s of processor time"


@dataclass(eq=False)
class Progress:
    """The plugin of the process that reports; workers of xdist send it their reports."""

    reporter: pytest.TerminalReporter
    costs_update: bool = False
    _started: float = field(default_factory=monotonic)
    _combinations: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    _groups: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    _stages: dict[str, Cost] = field(default_factory=lambda: defaultdict(Cost))
    _tests: Counter[str] = field(default_factory=Counter)
    _skipped: Counter[str] = field(default_factory=Counter)
    _fuzzed: Counter[bool] = field(default_factory=Counter)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Say that a combination begins a step that takes a while."""
        if (step := _step(nodeid)) is not None:
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
        """Count what a test took, and say how a step of a combination ended."""
        properties = dict(report.user_properties)
        processor = float(str(properties.get("processor_seconds", 0)))
        self._groups[group_of(report.nodeid)].add(report, processor)
        self._stages[_stage(report.nodeid)].add(report, processor)
        if report.skipped:
            self._skipped[_reason(report)] += 1
        if (step := _step(report.nodeid)) is None:
            return
        combination, name = step
        self._combinations[combination].add(report, processor)
        if report.when == "call" or report.failed:
            if report.passed and "fuzzed" in properties:
                self._fuzzed[bool(properties["fuzzed"])] += 1
            ran = properties.get("suite_tests")
            self._tests[combination] += int(str(ran or 0))
            count = f", {ran} tests" if ran else ""
            self._say(f"{combination}: {name} {report.outcome}, {report.duration:.1f} s{count}")

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self) -> None:
        """Say what was run, what it took, and what was not run."""
        if self.costs_update:
            Costs({name: cost.processor for name, cost in self._groups.items()}).write()
        if not self._combinations:
            return
        line = self.reporter.write_line
        self.reporter.section("combinations")
        for combination, cost in sorted(self._combinations.items()):
            line(f"{combination}: {self._tests[combination]} own tests, {cost}")
        self.reporter.section("costs")
        for stage, cost in sorted(self._stages.items(), key=lambda item: -item[1].processor):
            line(f"{stage}: {cost}")
        total = sum(cost.processor for cost in self._stages.values())
        line(f"all: {monotonic() - self._started:.0f} s on the clock, {total:.0f} s of processor")
        costliest = sorted(self._combinations.items(), key=lambda item: -item[1].processor)
        for combination, cost in costliest[:COSTLIEST]:
            line(f"costliest: {combination}, {cost}")
        for reason, count in sorted(self._skipped.items()):
            line(f"skipped: {count} tests: {reason}")
        if not self._skipped:
            line("skipped: nothing")
        if self._fuzzed[False]:
            line(
                f"contract fuzz: in {self._fuzzed[True]} combinations; the other "
                f"{self._fuzzed[False]} have the database and the routes of one of these"
            )
        ran = sum(count > 0 for count in self._tests.values())
        line(
            f"combinations rendered: {len(self._combinations)}; whose own tests passed: {ran}, "
            f"with {self._tests.total()} tests"
        )

    def _say(self, line: str) -> None:
        self.reporter.ensure_newline()
        self.reporter.write_line(line)


def _stage(nodeid: str) -> str:
    return next((stage for begin, stage in STAGES if nodeid.startswith(begin)), OTHER_STAGE)


def _reason(report: pytest.TestReport) -> str:
    # Of a skipped test it is the file, the line, and the reason.
    where = report.longrepr
    return where[2] if isinstance(where, tuple) else str(where)


def _step(nodeid: str) -> tuple[str, str] | None:
    # tests/test_combination.py::test_types_are_strict[sqlite+example]
    combination = group_of(nodeid)
    if "::" in combination:
        return None
    name = nodeid.partition("::")[2].partition("[")[0]
    return combination, name.removeprefix("test_").replace("_", " ")
