"""A rendered service with an environment of its own, and the commands that must pass in it."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

TAIL_LINES = 60
SUITE = ["pytest", "--cov"]
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


class Service:
    """The folder of a render in which commands are run as its team would run them."""

    def __init__(self, folder: Path, render_command: str, types_cache: Path | None = None) -> None:
        """Use `folder`.

        Args:
            folder: The render.
            render_command: How a person renders the same into `../service`.
            types_cache: What mypy knows of other services: it goes by the content of files, and
                most are the same. No two may use it at a time; without it, each has its own.
        """
        self.folder = folder
        self._render_command = render_command
        self._own = {} if types_cache is None else {"MYPY_CACHE_DIR": str(types_cache)}
        self._is_installed = False

    def install(self) -> None:
        """Make the virtual environment that holds what the service declares, and nothing else."""
        if not self._is_installed:
            # `uv run` tells where uv is; it need not be on PATH.
            uv = os.environ.get("UV", "uv")
            self.run([uv, "sync", "--quiet"], in_environment=False)
            self._is_installed = True

    def run(
        self,
        command: list[str],
        *,
        in_environment: bool = True,
        timeout_seconds: float = 900,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """Run a command in the service and answer its output.

        Raises:
            CommandFailedError: on any other exit status than 0, and when it takes too long.
        """
        if in_environment:
            self.install()
            executable = (
                self.folder / ".venv" / ("Scripts" if os.name == "nt" else "bin") / command[0]
            )
            argv = [str(executable), *command[1:]]
        else:
            argv = command
        path = os.pathsep.join([str(self.folder / ".venv" / "bin"), os.environ.get("PATH", "")])
        environment = clean_environment({"PATH": path, **self._own, **(extra or {})})
        status, output = _run(argv, self.folder, environment, timeout_seconds)
        if status != 0:
            raise CommandFailedError(self._explain(command, in_environment, status, output))
        return output

    def run_suite(self, workers: int, *, measured: bool = True) -> SuiteResult:
        """Run the service's own tests, with its coverage gate if they are to be measured.

        Raises:
            CommandFailedError: if one fails or is skipped, or there is none.
        """
        report = self.folder / ".junit.xml"
        # One worker beside the process that waits for it would only cost its start.
        processes = str(workers) if workers > 1 else "0"
        suite = SUITE if measured else SUITE[:1]
        command = [*suite, "-n", processes, f"--junitxml={report.name}", "-q"]
        output = self.run(command)
        result = read_junit(report)
        report.unlink()
        if result.passed == 0 or result.skipped:
            problem = f"{result.passed} tests passed and {result.skipped} were skipped"
            raise CommandFailedError(self._explain(command, True, 0, f"{output}\n{problem}"))
        return result

    def _explain(self, command: list[str], in_environment: bool, status: int, output: str) -> str:
        shown = shlex.join((["uv", "run"] if in_environment else []) + command)
        tail = "\n".join(output.splitlines()[-TAIL_LINES:])
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
    try:
        output, _ = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return -signal.SIGKILL, f"{output}\nstopped after {timeout_seconds:g} seconds"
    return process.returncode, output
