"""The update of the template: nothing of the team's is lost without a word."""

import subprocess
import sys
from pathlib import Path

import pytest

from devtools.update import update


def git(project: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], check=True, cwd=project, capture_output=True, text=True
    ).stdout


def commit(project: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    git(project, "add", "--all")
    git(project, "commit", "--quiet", "--message", "commit")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A service: made from the template, then changed by its team in one file of two."""
    git(tmp_path, "init", "--quiet")
    made = {".copier-answers.yml": "_commit: v1\n", "app/a.py": "a = 1\n", "app/b.py": "b = 1\n"}
    commit(tmp_path, made)
    commit(tmp_path, {"app/a.py": "a = 2\n"})
    return tmp_path


def template(script: str) -> list[str]:
    """A command that leaves behind what an update of Copier would."""
    return [sys.executable, "-c", f"import subprocess; from pathlib import Path\n{script}"]


def test_uncommitted_changes_are_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "app/a.py").write_text("unsaved")

    assert update(project, template("Path('app/b.py').unlink()")) == 1
    assert "git add -A && git commit" in capsys.readouterr().out
    assert (project / "app/b.py").exists()


def test_a_folder_that_no_template_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(tmp_path, template("Path('touched').touch()")) == 1
    assert ".copier-answers.yml is missing" in capsys.readouterr().out
    assert not (tmp_path / "touched").exists()


def test_an_update_that_fails_gives_its_exit_code(project: Path) -> None:
    assert update(project, template("raise SystemExit(4)")) == 4


def test_deleted_files_that_the_team_had_changed_can_be_brought_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(project, template("Path('app/a.py').unlink(); Path('app/b.py').unlink()")) == 0

    printed = capsys.readouterr().out
    assert "git checkout HEAD -- app/a.py" in printed
    assert "git checkout HEAD -- app/b.py" not in printed
    assert "app/b.py" in printed
    git(project, "checkout", "HEAD", "--", "app/a.py")
    assert (project / "app/a.py").read_text() == "a = 2\n"


def test_conflicts_are_listed_and_are_an_error(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = git(project, "branch", "--show-current").strip()
    git(project, "checkout", "--quiet", "-b", "template", "HEAD~1")
    commit(project, {"app/a.py": "a = 3\n"})
    git(project, "checkout", "--quiet", branch)

    assert update(project, template("subprocess.run(['git', 'merge', 'template'])")) == 1
    assert "app/a.py" in capsys.readouterr().out.partition("Conflicts")[2]


def test_a_rejected_change_is_a_conflict(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert update(project, template("Path('app/a.py.rej').touch()")) == 1
    assert "app/a.py.rej" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "is_told"), [("__tablename__ = 'new'", True), ("nothing = None", False)]
)
def test_changed_tables_ask_for_a_migration(
    project: Path, capsys: pytest.CaptureFixture[str], text: str, is_told: bool
) -> None:
    assert update(project, template(f"Path('app/models.py').write_text({text!r})")) == 0
    assert ("just migration" in capsys.readouterr().out) is is_told
