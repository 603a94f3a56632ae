"""A rendered service with what it declares installed, and the commands that must pass in it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.combinations import Combination
from tests.environments import Environments, locked
from tests.processor import children, collect, collect_all
from tests.snapshot import read_tree

TAIL_LINES = 60
INSIDE_SECONDS = 1200
# In the stacks of what hung; those of an exception have a comma before "in".
_DUMPED_FRAME = re.compile(r'  File ".*/site-packages/.*", line \d+ in ')
_TURN_SECONDS = 0.5
SUITE = ["pytest", "--cov"]
TYPES = ["mypy"]
# What the outer run sets for itself and a service's commands must not see; and what would have
# each of their dozens of processes compile every module that it imports.
_PRIVATE_PREFIXES = (
    "COV_",
    "COVERAGE_",
    "PYTEST_",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPATH",
    "UV_PROJECT",
    "VIRTUAL_ENV",
)


class CommandFailedError(AssertionError):
    """A command of a service failed; the message reproduces it and ends with its output."""


@dataclass(frozen=True)
class SuiteResult:
    """What a service's own tests reported."""

    passed: int
    skipped: int


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what belongs to the outer test run."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_PRIVATE_PREFIXES)}
    # Python is the one that runs the harness; nothing is downloaded behind somebody's back.
    return {**kept, "UV_PYTHON_DOWNLOADS": "never", "UV_PYTHON": sys.executable, **(extra or {})}


def render_command(combination: Combination) -> str:
    """What a person types in the template's folder to render a combination into `../service`."""
    data = " ".join(f"--data {k}={str(v).lower()}" for k, v in combination.answers.items())
    return f"uv run copier copy --vcs-ref HEAD --defaults {data} . ../service"


class Service:
    """The folder of a render in which commands are run as its team would run them."""

    def __init__(self, folder: Path, render_command: str, environments: Environments) -> None:
        """Use `folder`.

        Args:
            folder: The render.
            render_command: How a person renders the same into `../service`.
            environments: Where what it declares is installed.
        """
        self.folder = folder
        self.as_rendered = read_tree(folder)
        """Its files before any command has run."""
        self._render_command = render_command
        self._environments = environments
        self._environment: Path | None = None

    def install(self) -> Path:
        """Have a virtual environment that holds what the service declares, and nothing else.

        Returns:
            Its folder, which other services may use, too.
        """
        if self._environment is None:
            self._environment = self._environments.prepare(self.folder, clean_environment())
        return self._environment

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The variables with which its commands run; `uv run` finds the same environment."""
        environment = self.install()
        path = os.pathsep.join([str(environment / "bin"), os.environ.get("PATH", "")])
        own = {"PATH": path, "UV_PROJECT_ENVIRONMENT": str(environment)}
        return clean_environment({**own, **(extra or {})})

    def run(
        self,
        command: list[str],
        *,
        timeout_seconds: float = 1800,
        extra: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
    ) -> str:
        """Run a command in the service and answer its output.

        Args:
            command: What the team would run with `uv run`.
            timeout_seconds: After which it is killed.
            extra: More environment variables.
            options: More arguments, which change nothing of what the command finds.

        Raises:
            CommandFailedError: on any other exit status than 0, and when it takes too long.
        """
        argv = [str(self.install() / "bin" / command[0]), *command[1:], *options]
        status, output = _run(argv, self.folder, self.environ(extra), timeout_seconds)
        if status != 0:
            raise CommandFailedError(self._explain(command, status, output))
        return output

    def check_types(self) -> None:
        """Run mypy with what it knows of other services, one at a time.

        Its cache goes by the content of files, most of which are the same everywhere, if their
        paths are the same, too: so it sees every environment at one place.

        Raises:
            CommandFailedError: if it finds something.
        """
        types = self._environments.kept / "types"
        with locked(types / "lock"):
            place = types / "environment"
            place.unlink(missing_ok=True)
            place.symlink_to(self.install(), target_is_directory=True)
            python = place / "bin" / "python"
            extra = {"MYPY_CACHE_DIR": str(types / "cache")}
            self.run(TYPES, extra=extra, options=["--python-executable", str(python)])

    def run_suite(
        self,
        workers: int,
        *chosen: str,
        measured: bool = True,
        expression: str = "",
        left_out: str = "",
    ) -> SuiteResult:
        """Run the service's own tests.

        Args:
            workers: How many processes of pytest-xdist.
            chosen: Files and folders; all if there is none.
            measured: Whether with its coverage gate.
            expression: Which of them, as pytest's `-k`.
            left_out: A file to leave out.

        Raises:
            CommandFailedError: if one fails or is skipped, or there is none.
        """
        report = self.folder / ".junit.xml"
        # One worker beside the process that waits for it would only cost its start.
        processes = str(workers) if workers > 1 else "0"
        suite = SUITE if measured else SUITE[:1]
        options = [*chosen, *(["-k", expression] if expression else [])]
        options += [f"--ignore={left_out}"] if left_out else []
        # Verbose: the last line names the test that hung, as the dump of its stacks does not.
        command = [*suite, "-n", processes, f"--junitxml={report.name}", "-v", *options]
        output = self.run(command)
        result = read_junit(report)
        report.unlink()
        if result.passed == 0 or result.skipped:
            problem = f"{result.passed} tests passed and {result.skipped} were skipped"
            raise CommandFailedError(self._explain(command, 0, f"{output}\n{problem}"))
        return result

    def run_inside(self, scenario: Path, *, extra: Mapping[str, str] | None = None) -> None:
        """Run a test of ours as one of the service's own; nothing of it stays.

        Args:
            scenario: The file, which may import the service and its fixtures.
            extra: More environment variables.

        Raises:
            CommandFailedError: if it fails.
        """
        copied = self.folder / "tests" / f"test_{scenario.name}"
        shutil.copyfile(scenario, copied)
        try:
            # Some restart servers for minutes, longer than a test of the service's own may take.
            patience = f"faulthandler_timeout={INSIDE_SECONDS}"
            quick = ["-n0", "-q", "-p", "no:cacheprovider", "-o", patience]
            self.run(["pytest", *quick, str(copied)], extra=extra)
        finally:
            copied.unlink()

    def _explain(self, command: list[str], status: int, output: str) -> str:
        shown = shlex.join(["uv", "run", *command])
        lines = [line for line in output.splitlines() if not _DUMPED_FRAME.match(line)]
        tail = "\n".join(lines[-TAIL_LINES:])
        return (
            f"`{shown}` ended with status {status}. In the template's folder, reproduce it with\n\n"
            f"  {self._render_command} && (cd ../service && {shown})\n\n{tail}"
        )


def read_junit(report: Path) -> SuiteResult:
    """The counts in a JUnit report: passed are those neither failed nor skipped."""
    passed = skipped = 0
    # The report was written by the pytest that this harness started.
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):  # noqa: S314
        counts = {k: int(suite.get(k, "0")) for k in ("tests", "failures", "errors", "skipped")}
        skipped += counts["skipped"]
        passed += counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    return SuiteResult(passed, skipped)


def _run(
    argv: list[str], folder: Path, environment: Mapping[str, str], timeout_seconds: float
) -> tuple[int, str]:
    known = children()
    # A group of its own, so that servers which a command leaves behind end with it.
    process = subprocess.Popen(
        argv,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    status = None
    deadline = time.monotonic() + timeout_seconds
    while status is None:
        try:
            output, _ = process.communicate(timeout=_TURN_SECONDS)
            status = process.returncode
        except subprocess.TimeoutExpired:
            collect(children() - known - {process.pid})
            if time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
                output, _ = process.communicate()
                status = -signal.SIGKILL
                output += f"\nstopped after {timeout_seconds:g} seconds"
    # Its servers end by themselves, a little later; what they took belongs to this command.
    collect_all(known)
    return status, output
