"""What belongs together stays with one worker, with the versions that are installed."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.groups import group_of
from tests.snapshot import ROOT

WHO_RAN_WHAT = """
def pytest_runtest_logreport(report):
    # Only the process that hears of it from the workers knows.
    if report.when == "call" and hasattr(report, "worker_id"):
        print(f"\\n{report.worker_id} ran {report.nodeid}")
"""


@pytest.mark.parametrize(
    ("nodeid", "group"),
    [
        ("tests/test_combination.py::test_it_is_linted[sqlite+jwt]", "sqlite+jwt"),
        ("tests/test_browser.py::test_it_works[a]", "tests/test_browser.py::"),
        ("tests/test_files.py::test_a[sqlite+jwt]", "tests/test_files.py::test_a[sqlite+jwt]"),
    ],
)
def test_a_group_is_known_by_the_node_id(nodeid: str, group: str) -> None:
    assert group_of(nodeid) == group


def test_a_combination_stays_with_one_worker(tmp_path: Path) -> None:
    (tmp_path / "who_ran_what.py").write_text(WHO_RAN_WHAT)
    code = f"import sys, pytest; sys.path.append({str(tmp_path)!r}); sys.exit(pytest.main())"
    options = ["-p", "who_ran_what", "-n2", "--shard=6/6", "-k", "tree or its_api", "-s"]
    chosen = ["tests/test_combination.py", *options]
    command = [sys.executable, "-c", code, *chosen]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    workers: dict[str, list[str]] = defaultdict(list)
    for line in result.stdout.splitlines():
        worker, ran, nodeid = line.partition(" ran ")
        if ran:
            workers[group_of(nodeid)].append(worker)
    assert len(workers) > 2, result.stdout + result.stderr
    assert all(len(own) == 2 and len(set(own)) == 1 for own in workers.values()), workers
