"""`just update` of a service, with the real Copier: a conflict is told, and stays one."""

import shlex
import subprocess
import sys
from pathlib import Path

from tests.service import clean_environment
from tests.update.repository import TemplateRepository, commit, run_git

# A file that both the team and the template change.
CHANGED = "app/domains.py"


def just_update(service: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the recipe runs, with the Copier of the harness instead of the newest one."""
    return subprocess.run(
        [sys.executable, "-m", "devtools.update", *arguments],
        cwd=service,
        env=clean_environment({"COPIER": shlex.join([sys.executable, "-m", "copier"])}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def append(path: Path, line: str) -> None:
    path.write_text(f"{path.read_text()}{line}\n")


def release_with(repository: TemplateRepository, folder: Path, line: str) -> Path:
    """A template of its own whose newest release ends a file with `line`."""
    run_git(folder.parent, "clone", "--quiet", str(repository.folder), str(folder))
    append(folder / "template" / CHANGED, line)
    commit(folder, "Change a file")
    run_git(folder, "tag", "999.0.0")
    return folder


def copy_from(repository: TemplateRepository, template: Path, service: Path) -> Path:
    """A service made of the working tree that will be updated from `template`."""
    repository.copy(repository.head, service)
    answers = service / ".copier-answers.yml"
    answers.write_text(answers.read_text().replace(str(repository.folder), str(template)))
    commit(service, "Follow another template")
    return service


def test_a_conflict_is_reported_and_stays_in_the_index(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    template = release_with(repository, tmp_path / "template", "THEIRS = 1")
    service = copy_from(repository, template, tmp_path / "service")
    append(service / CHANGED, "OURS = 1")
    commit(service, "Change it, too")
    before = (service / CHANGED).read_text().splitlines()
    (service / "uv.lock").write_text("version = 1\n")

    result = just_update(service)

    assert result.returncode == 1, result.stderr
    assert CHANGED in result.stdout.partition("Conflicts")[2]
    assert CHANGED in run_git(service, "ls-files", "-u")
    after = (service / CHANGED).read_text().splitlines()
    assert "THEIRS = 1" in after
    assert [line for line in before if line not in after] == []
    assert (service / "uv.lock").read_text() == "version = 1\n"


def test_an_update_without_conflicts_succeeds(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    template = release_with(repository, tmp_path / "template", "THEIRS = 1")
    service = copy_from(repository, template, tmp_path / "service")

    result = just_update(service)

    assert result.returncode == 0, result.stdout + result.stderr
    assert (service / CHANGED).read_text().endswith("THEIRS = 1\n")
