"""A template update that hides nothing: refuses unsaved work, lists conflicts and lost files."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_ANSWERS = ".copier-answers.yml"
_COPIER = ("uvx", "--from", "copier>=9.19,<10", "copier", "update", "--skip-answered")


def main() -> None:
    """Update the project in the current folder; arguments are Copier's, such as `--data x=true`."""
    arguments = sys.argv[1:]
    if not sys.stdin.isatty() and not {"--defaults", "-l"} & set(arguments):
        # Nobody is there to answer new questions.
        arguments.append("--defaults")
    sys.exit(update(Path.cwd(), [*_COPIER, *arguments]))


def update(project: Path, command: Sequence[str]) -> int:
    """Run Copier's update and report what needs a person.

    Returns:
        The exit code: 0 when nothing is left to resolve. Copier's own says nothing of conflicts.
    """
    if not (project / _ANSWERS).exists():
        print(f"{_ANSWERS} is missing: this folder was not made from a template.")
        return 1
    if _git(project, "status", "--porcelain"):
        print("There are uncommitted changes, which the update would mix with its own.")
        print('Commit them first: git add -A && git commit -m "..."')
        return 1
    if failed := subprocess.run(command, check=False, cwd=project).returncode:
        print("The update failed; `git status` shows what it has done so far.")
        return failed
    conflicts = _lines(_git(project, "diff", "--name-only", "--diff-filter=U"))
    conflicts += [str(path.relative_to(project)) for path in project.rglob("*.rej")]
    _report_deletions(project)
    _report_tables(project)
    if conflicts:
        print("\nConflicts. Edit the parts between <<<<<<< and >>>>>>>, then `git add` the file:")
        print(*(f"  {path}" for path in conflicts), sep="\n")
        return 1
    print("\nUpdated. Look at `git diff HEAD`, run `uv run just check`, commit.")
    return 0


def _report_deletions(project: Path) -> None:
    deleted = _lines(_git(project, "diff", "--name-only", "--diff-filter=D", "HEAD"))
    yours = [path for path in deleted if _was_changed(project, path)]
    if yours:
        print("\nThe update deleted these files, which you had changed. To bring one back:")
        print(*(f"  git checkout HEAD -- {path}" for path in yours), sep="\n")
    if others := sorted(set(deleted) - set(yours)):
        print("\nIt also deleted these, which are as the template had made them:")
        print(*(f"  {path}" for path in others), sep="\n")


def _was_changed(project: Path, path: str) -> bool:
    """Whether a commit other than the template's own has touched the file."""
    by_template = set(_lines(_git(project, "log", "--format=%H", "--", _ANSWERS)))
    return not by_template.issuperset(_lines(_git(project, "log", "--format=%H", "--", path)))


def _report_tables(project: Path) -> None:
    _git(project, "add", "--intent-to-add", "--", "app")
    changed = _lines(_git(project, "diff", "--name-only", "HEAD", "--", "app"))
    if any("__tablename__" in _text(project, path) for path in changed):
        print("\nTables may have changed. Write the migration, read it, apply it:")
        print('  uv run just migration "template update" && uv run just migrate')


def _text(project: Path, path: str) -> str:
    """What the file is now, or was before the update deleted it."""
    file = project / path
    return file.read_text() if file.exists() else _git(project, "show", f"HEAD:{path}")


def _git(project: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], check=False, cwd=project, capture_output=True, text=True
    )
    if result.returncode:
        message = f"git {' '.join(arguments)}: {result.stderr.strip()}"
        raise SystemExit(message)
    return result.stdout


def _lines(text: str) -> list[str]:
    return text.splitlines()


if __name__ == "__main__":
    main()
