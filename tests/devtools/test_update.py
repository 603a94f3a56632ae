"""The update of the template: nothing of the team's is lost without a word."""

import subprocess
import sys
from pathlib import Path

import pytest

from devtools.update import update


def git(project: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], check=True, cwd=project, capture_output=True, text=True
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
    # A machine that builds may have told git nobody's name.
    git(tmp_path, "config", "user.name", "Ada")
    git(tmp_path, "config", "user.email", "ada@example.com")
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
    printed = capsys.readouterr().out
    assert " M app/a.py\n" in printed
    assert "git add -A && git commit" in printed
    assert (project / "app/b.py").exists()


def test_a_folder_that_no_template_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(tmp_path, template("Path('touched').touch()")) == 1
    assert ".copier-answers.yml is missing" in capsys.readouterr().out
    assert not (tmp_path / "touched").exists()


def test_an_update_that_fails_gives_its_exit_code(project: Path) -> None:
    assert update(project, template("raise SystemExit(4)")) == 4


def test_every_deleted_file_can_be_brought_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(project, template("Path('app/a.py').unlink(); Path('app/b.py').unlink()")) == 0

    printed = capsys.readouterr().out
    # Nothing is left of the folder.
    assert "git checkout HEAD -- app   # 2 files\n" in printed
    git(project, "checkout", "HEAD", "--", "app")
    assert (project / "app/a.py").read_text() == "a = 2\n"


def test_a_deleted_file_is_named_where_others_of_its_folder_are_left(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert update(project, template("Path('app/b.py').unlink()")) == 0
    assert "git checkout HEAD -- app/b.py\n" in capsys.readouterr().out


def test_conflicts_are_listed_and_stay_conflicts(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branch = git(project, "branch", "--show-current").strip()
    git(project, "checkout", "--quiet", "-b", "template", "HEAD~1")
    commit(project, {"app/a.py": "a = 3\n"})
    git(project, "checkout", "--quiet", branch)

    assert update(project, template("subprocess.run(['git', 'merge', 'template'])")) == 1
    assert "app/a.py" in capsys.readouterr().out.partition("Conflicts")[2]
    stages = [line.split()[2] for line in git(project, "ls-files", "-u").splitlines()]
    assert stages == ["1", "2", "3"]


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
    printed = capsys.readouterr().out
    assert ('  uv run just migration "template update"\n' in printed) is is_told
    assert ("  uv run just migrate\n" in printed) is is_told


def test_deleted_tables_ask_for_no_migration(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(project, {"app/books/models.py": "__tablename__ = 'books'\n"})
    assert update(project, template("Path('app/books/models.py').unlink()")) == 0
    assert "just migration" not in capsys.readouterr().out


def test_files_that_need_a_deleted_package_are_listed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = {"app/books/__init__.py": "", "app/books/models.py": "", "app/books/ours.py": ""}
    users = {
        "app/c.py": "from app.books.models import Book\n",
        "app/d.py": "from app import a, books\n",
        "app/e.py": "import app.bookshelf\n",
    }
    commit(project, {**package, **users})
    script = "Path('app/books/__init__.py').unlink(); Path('app/books/models.py').unlink()"

    assert update(project, template(script)) == 0
    printed = capsys.readouterr().out
    assert "still name modules that the update deleted:\n  app/c.py\n  app/d.py\n\n" in printed
    assert "left in packages that the update deleted:\n  app/books/ours.py\n\n" in printed


def test_edits_that_a_returning_file_has_lost_can_be_brought_back(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(project, "rm", "--quiet", "-r", "app")
    git(project, "commit", "--quiet", "--message", "Switch it off")
    script = """
Path('app').mkdir()
Path('app/a.py').write_text('a = 1\\n')
Path('app/b.py').write_text('b = 1\\n')
Path('app/new.py').touch()
"""

    assert update(project, template(script)) == 0
    commands = [
        line.strip() for line in capsys.readouterr().out.splitlines() if "git checkout" in line
    ]
    off = git(project, "rev-parse", "--short", "HEAD").strip()
    # app/b.py is as it was, app/new.py never was.
    assert commands == [f"git checkout {off}^ -- app/a.py"]
    git(project, *commands[0].split()[1:])
    assert (project / "app/a.py").read_text() == "a = 2\n"


@pytest.mark.parametrize("committed", [None, "version = 1\n"], ids=["untracked", "modified"])
def test_an_uncommitted_lock_file_is_no_unfinished_work_and_is_kept(
    project: Path, committed: str | None
) -> None:
    if committed:
        commit(project, {"uv.lock": committed})
    (project / "uv.lock").write_text("version = 2\n")
    # As Copier does, this refuses what is not committed.
    clean = "raise SystemExit(len(subprocess.check_output(['git', 'status', '--porcelain'])))"

    assert update(project, template(clean)) == 0
    assert (project / "uv.lock").read_text() == "version = 2\n"
    expected = " M uv.lock" if committed else "?? uv.lock"
    assert git(project, "status", "--porcelain").rstrip() == expected


def test_a_lock_file_is_kept_when_the_update_fails(project: Path) -> None:
    (project / "uv.lock").write_text("version = 2\n")
    assert update(project, template("raise SystemExit(4)")) == 4
    assert (project / "uv.lock").read_text() == "version = 2\n"
