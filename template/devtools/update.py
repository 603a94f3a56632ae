"""A template update that hides nothing: refuses unsaved work, lists conflicts and lost files."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

_ANSWERS = ".copier-answers.yml"
_LOCK = "uv.lock"
_COPIER = "uvx --from 'copier>=9.19,<10' copier"


def main() -> None:
    """Update the project in the current folder; arguments are Copier's, such as `--data x=true`.

    The environment variable COPIER names another command than the one that `uvx` fetches.
    """
    arguments = sys.argv[1:]
    if not sys.stdin.isatty() and not {"--defaults", "-l"} & set(arguments):
        # Nobody is there to answer new questions.
        arguments.append("--defaults")
    copier = shlex.split(os.environ.get("COPIER", _COPIER))
    sys.exit(update(Path.cwd(), [*copier, "update", "--skip-answered", *arguments]))


def update(project: Path, command: Sequence[str]) -> int:
    """Run Copier's update and report what needs a person; the index stays as Copier left it.

    Returns:
        The exit code: 0 when there is no conflict. Copier's own says nothing of conflicts.
    """
    if not (project / _ANSWERS).exists():
        print(f"{_ANSWERS} is missing: this folder was not made from a template.")
        return 1
    if unfinished := _git(project, "status", "--short", "--", ":/", f":(exclude){_LOCK}"):
        print("There are uncommitted changes, which the update would mix with its own:")
        print(unfinished, end="")
        print('Commit them first: git add -A && git commit -m "..."')
        return 1
    with _lock_kept_aside(project):
        # What is printed by then comes before what Copier prints.
        sys.stdout.flush()
        failed = subprocess.run(command, check=False, cwd=project).returncode
    if failed:
        print("The update failed; `git status` shows what it has done so far.")
        return failed
    untracked = set(_paths(project, "ls-files", "--others", "--exclude-standard")) - {_LOCK}
    deleted = _changed(project, "--diff-filter=D")
    _report_deleted(project, deleted)
    _report_orphans(project, deleted)
    _report_returned(project, untracked | _changed(project, "--diff-filter=A"))
    _report_tables(project, untracked | _changed(project))
    conflicts = set(_paths(project, "diff", "--name-only", "--relative", "--diff-filter=U"))
    conflicts |= {path for path in untracked if path.endswith(".rej")}
    if conflicts:
        print("\nConflicts. Edit the parts between <<<<<<< and >>>>>>>, then `git add` the file:")
        _print_list(conflicts)
        return 1
    print("\nUpdated. Look at `git diff HEAD`, run `uv run just check`, commit.")
    return 0


@contextmanager
def _lock_kept_aside(project: Path) -> Iterator[None]:
    """Spare a lock file that `uv run` wrote from Copier, which refuses any uncommitted change."""
    lock = project / _LOCK
    if not (lock.exists() and _git(project, "status", "--short", "--", _LOCK)):
        yield
        return
    aside = project / _git(project, "rev-parse", "--git-path", f"{_LOCK}.aside").strip()
    lock.replace(aside)
    try:
        if _git(project, "ls-tree", "--name-only", "HEAD", "--", _LOCK):
            _git(project, "checkout", "--quiet", "HEAD", "--", _LOCK)
        else:
            _git(project, "rm", "--cached", "--quiet", "--ignore-unmatch", "--", _LOCK)
        yield
    finally:
        aside.replace(lock)


def _report_deleted(project: Path, deleted: set[str]) -> None:
    if not deleted:
        return
    kept = set(_paths(project, "ls-tree", "-r", "--name-only", "HEAD")) - deleted
    folders = {folder for path in kept for folder in PurePosixPath(path).parents}
    counts: dict[str, int] = {}
    for path in sorted(deleted):
        gone = [parent for parent in PurePosixPath(path).parents if parent not in folders]
        # The outermost folder of which nothing is left.
        name = str(gone[-1]) if gone and str(gone[-1]) != "." else path
        counts[name] = counts.get(name, 0) + 1
    print("\nThe update deleted these, with any change of yours in them. To bring one back:")
    for name, count in counts.items():
        note = "" if name in deleted else f"   # {count} file{'s' if count > 1 else ''}"
        print(f"  git checkout HEAD -- {shlex.quote(name)}{note}")


def _report_orphans(project: Path, deleted: set[str]) -> None:
    """Tell of files that import what is gone, or that are left in a package that is gone."""
    modules = {_module(path) for path in deleted if re.fullmatch(r".+/.+\.py", path)}
    # Whoever imports a part of a package imports the package.
    outermost = {name for name in modules if not modules & set(_packages(name))}
    patterns = [option for name in sorted(outermost) for option in ("-e", _imports(name))]
    if patterns:
        searched = ("--untracked", "-l", "-E", *patterns, "--", "*.py", "*.toml")
        if users := _paths(project, "grep", *searched):
            print("\nThese still name modules that the update deleted:")
            _print_list(users)
    inits = [PurePosixPath(path) for path in deleted if path.endswith("/__init__.py")]
    folders = [str(path.parent) for path in inits]
    if folders and (left := set(_paths(project, "ls-files", "--", *folders)) - deleted):
        print("\nThese are left in packages that the update deleted:")
        _print_list(left)


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _packages(module: str) -> Iterator[str]:
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


def _imports(module: str) -> str:
    """An extended regular expression for the lines that name a module."""
    package, _, name = module.rpartition(".")
    dotted = rf"(^|[^A-Za-z0-9_.]){re.escape(module)}"
    from_package = rf"from {re.escape(package)} import (.*[ (,])?{name}"
    return f"({dotted}|{from_package})([^A-Za-z0-9_]|$)"


def _report_returned(project: Path, added: set[str]) -> None:
    """Tell of files that were in the project once, but not as the update has brought them now."""
    commands = []
    for path in sorted(added):
        commit = _git(project, "log", "--diff-filter=D", "-1", "--format=%h", "--", path).strip()
        if not commit or not (project / path).is_file():
            continue
        before = _git(project, "rev-parse", f"{commit}^:./{path}")
        if before != _git(project, "hash-object", "--", path):
            commands.append(f"git checkout {commit}^ -- {shlex.quote(path)}")
    if commands:
        print("\nThe update added these, which you had once with other content. To have that back:")
        _print_list(commands)


def _report_tables(project: Path, changed: set[str]) -> None:
    files = [project / path for path in changed if re.fullmatch(r"app/.*\.py", path)]
    if any(file.is_file() and "__tablename__" in file.read_text("utf-8") for file in files):
        print("\nTables may have changed. Write a migration and read it:")
        print('  uv run just migration "template update"')
        print("Then apply it:")
        print("  uv run just migrate")


def _changed(project: Path, *options: str) -> set[str]:
    return set(_paths(project, "diff", "--name-only", "--relative", *options, "HEAD"))


def _paths(project: Path, command: str, *arguments: str) -> list[str]:
    """What a command of git lists, with names unquoted."""
    return [path for path in _git(project, command, "-z", *arguments).split("\0") if path]


def _git(project: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], check=False, cwd=project, capture_output=True, encoding="utf-8"
    )
    # `git grep` says with 1 that it found nothing.
    if result.returncode and (arguments[0] != "grep" or result.returncode > 1):
        message = f"git {' '.join(arguments)}: {result.stderr.strip()}"
        raise SystemExit(message)
    return result.stdout


def _print_list(items: Iterable[str]) -> None:
    print(*(f"  {item}" for item in sorted(items)), sep="\n")


if __name__ == "__main__":
    main()
