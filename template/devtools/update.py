"""Brings the template's changes into this service: a three-way merge that git makes.

What the old release renders, what the new one renders, and the service as it is are merged beside
the working tree; then the outcome is put into it, all or nothing. Conflicts stand in the index, as
after `git merge`. Copier only renders, without `--trust`: no code of the template runs here.
"""

import argparse
import os
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from devtools.renames import Renames
from devtools.repository import Entry, Scratch, UpdateError
from devtools.template_source import ANSWERS, Answers, Template, advice
from devtools.three_way import Merge, Verdict, merge
from devtools.working_tree import Change, Project

# The team's own from the first copy on.
_REVISIONS = "migrations/versions/"
_MARKERS = re.compile(r"^<{7} .*?^={7}\r?$.*?^>{7} ", re.MULTILINE | re.DOTALL)
_SETTING = re.compile(r"^(?:# ?)?([A-Z][A-Z0-9_]+)=", re.MULTILINE)
_ORDER = {verdict: number for number, verdict in enumerate(Verdict)}
_DONE, _CONFLICTS, _FAILED = 0, 1, 2


def main() -> None:
    """Update the service in the current folder; `--help` lists the arguments.

    Exits with 0 if all is well, 1 if there are conflicts (with `--check`: if there is something
    newer), and 2 if it could not be done and nothing was changed.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    # Names of files may be anything.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = _parse(sys.argv[1:])
    try:
        code = _run(arguments)
    except UpdateError as error:
        print(error)
        code = _FAILED
    except OSError as error:
        # The disk, or a program that is not there.
        print(f"Failed: {error}")
        print("What it had begun is taken back, or `uv run just update --abort` does that.")
        code = _FAILED
    sys.exit(code)


def _run(arguments: argparse.Namespace) -> int:
    project = Project.open(Path.cwd())
    with nullcontext() if arguments.preview or arguments.check else project.alone():
        if arguments.abort:
            return _abort(project)
        with tempfile.TemporaryDirectory(prefix="template-update-") as folder:
            return _update(project, arguments, Path(folder).resolve())


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="just update", description=main.__doc__)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--preview", action="store_true", help="tell what would happen, no more")
    what.add_argument("--check", action="store_true", help="tell whether there is a newer release")
    what.add_argument("--abort", action="store_true", help="take the last update back")
    parser.add_argument("--to", "--vcs-ref", metavar="VERSION", help="a release; the newest if not")
    parser.add_argument(
        *("--data", "-d"),
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="another answer to a question",
    )
    parser.add_argument("--defaults", "-l", action="store_true", help="ask nothing")
    parsed = parser.parse_args(arguments)
    if wrong := [given for given in parsed.data if "=" not in given]:
        parser.error(f"--data {wrong[0]}: give NAME=VALUE")
    return parsed


def _stop(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _abort(project: Project) -> int:
    edited = Change(project).take_back()
    print("The update is taken back; all is as it was before.")
    if edited:
        print("You had edited these since; copies are in")
        _print_list(map(str, edited))
    return _DONE


def _update(project: Project, arguments: argparse.Namespace, folder: Path) -> int:
    change = Change(project)
    is_tried = arguments.preview or arguments.check
    if not is_tried:
        _refuse_unfinished(project, change, project.head)
    answers = Answers(project.folder)
    template = Template(answers, project.folder, folder / "template")
    target = template.target(arguments.to)
    if arguments.check:
        print(f"{target} is newer than {template.current}." if target else _up_to_date(template))
        return _CONFLICTS if target else _DONE
    if target is None and not arguments.data:
        print(_up_to_date(template))
        return _DONE
    target = target or template.current
    asks = sys.stdin.isatty() and not (arguments.defaults or arguments.preview)
    data = [f"--data={each}" for each in arguments.data]
    template.render(answers, template.current, folder / "old")
    template.render(answers, target, folder / "new", *data, asks=asks)
    scratch_folder = folder / "scratch"
    scratch_folder.mkdir()
    scratch = Scratch(scratch_folder, project.git_path("objects").resolve())
    outcome = _merge(scratch, project, template, target, folder)
    if not is_tried:
        # Rendering takes its time, and questions take a person's.
        _refuse_unfinished(Project.open(project.folder), change, project.head)
        # From here on until the end of the update, it can be taken back.
        try:
            change.prepare(scratch, outcome.merge.files)
            change.carry_out(outcome.merge.stages)
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            if change.is_unfinished:
                change.take_back()
            raise
    try:
        _report(outcome, template, target, is_tried=is_tried)
        sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads it any more, which changes nothing of the outcome.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return _CONFLICTS if outcome.merge.stages and not is_tried else _DONE


def _up_to_date(template: Template) -> str:
    return f"There is nothing newer than {template.current}, from which this service comes."


def _refuse_unfinished(project: Project, change: Change, head: str) -> None:
    if project.head != head:
        raise UpdateError("Something was committed meanwhile: start the update again.")
    if change.is_unfinished:
        message = "An update was interrupted. Take it back first: uv run just update --abort"
        raise UpdateError(message)
    if unsaved := project.uncommitted():
        listed = "\n".join(f"  {path}" for path in unsaved)
        raise UpdateError(
            "There are uncommitted changes, which the update would mix with its own:\n"
            f'{listed}\nCommit them first: git add -A && git commit -m "..."\n'
            "If they are a former update's: uv run just update --abort takes that back."
        )
    change.forget()


@dataclass
class _Outcome:
    """What there is to tell after a merge."""

    merge: Merge
    renamed: list[str]
    broken: list[str]
    returned: list[str]
    new_settings: list[str]
    gone_settings: list[str]
    still_set: list[str]
    has_new_tables: bool


def _merge(
    scratch: Scratch, project: Project, template: Template, target: str, folder: Path
) -> _Outcome:
    base, theirs = (_read(scratch, folder / name) for name in ("old", "new"))
    ours = project.files()
    if ANSWERS not in ours:
        raise UpdateError(f"{ANSWERS} is not committed.")
    _refuse_markers(scratch, {path: entry for path, entry in ours.items() if path in base})
    # Which release it comes from is the template's to say.
    answers = theirs.pop(ANSWERS)
    base.pop(ANSWERS)
    # Also a name of a branch, and of nothing else.
    label = "template-" + re.sub(r"[^\w+.-]", "-", target)
    merged = merge(scratch, base, {k: v for k, v in ours.items() if k != ANSWERS}, theirs, label)
    merged.files[ANSWERS] = answers
    renames = Renames.read(template.read(target, "renames.toml"), template.current)
    own = {path: entry for path, entry in merged.files.items() if theirs.get(path) != entry}
    renamed = list(_rename(scratch, merged, scratch.texts(own), scratch.texts(theirs), renames))
    before, after = (_settings(scratch, files) for files in (base, theirs))
    gone = before - after
    changed = {path: each for path, each in merged.files.items() if ours.get(path) != each}
    return _Outcome(
        merged,
        renamed,
        broken=list(_find_broken(scratch, {k: merged.files[k] for k in own}, ours, merged.files)),
        returned=list(_find_returned(project, changed, ours)),
        new_settings=sorted(after - before),
        gone_settings=[
            f"{name}, now {renames.settings[name]}" if name in renames.settings else name
            for name in sorted(gone)
        ],
        still_set=sorted(gone & _set_in(project.folder / ".env")),
        has_new_tables=any(
            re.fullmatch(r"app/.*\.py", path) and "__tablename__" in text
            for path, text in scratch.texts(changed).items()
        ),
    )


def _read(scratch: Scratch, folder: Path) -> dict[str, Entry]:
    files = scratch.read_folder(folder)
    return {path: entry for path, entry in files.items() if not path.startswith(_REVISIONS)}


def _refuse_markers(scratch: Scratch, files: Mapping[str, Entry]) -> None:
    """A conflict that was committed as it was would pass for the team's change."""
    marked = [path for path, text in scratch.texts(files).items() if _MARKERS.search(text)]
    if marked:
        listed = "\n".join(f"  {path}" for path in sorted(marked))
        message = f"Conflict markers were committed. Edit these files and commit them:\n{listed}"
        raise UpdateError(message)


def _rename(
    scratch: Scratch,
    merged: Merge,
    own: Mapping[str, str],
    theirs: Mapping[str, str],
    renames: Renames,
) -> Iterator[str]:
    for path, text in sorted(own.items()):
        new, lines = renames.apply(path, text, theirs.get(path, ""))
        if lines:
            merged.files[path] = replace(merged.files[path], blob=scratch.add(new))
        yield from (f"{path}:{number}: {line.strip()}" for number, line in lines)


def _settings(scratch: Scratch, files: Mapping[str, Entry]) -> set[str]:
    example = {path: entry for path, entry in files.items() if path == ".env.example"}
    return {name for text in scratch.texts(example).values() for name in _SETTING.findall(text)}


def _set_in(env_file: Path) -> set[str]:
    text = env_file.read_text("utf-8", "replace") if env_file.is_file() else ""
    return set(re.findall(r"^(?:\w+\s+)?([A-Z][A-Z0-9_]+)\s*=", text, re.MULTILINE))


def _find_broken(
    scratch: Scratch,
    own: Mapping[str, Entry],
    before: Mapping[str, Entry],
    after: Mapping[str, Entry],
) -> Iterator[str]:
    """The team's files that name modules which are gone, or stand in packages which are."""
    gone = [path for path in before if path not in after and re.fullmatch(r".+/.+\.py", path)]
    modules = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in gone
    }
    # Whoever imports a part of a package imports the package.
    outermost = {name for name in modules if name.rpartition(".")[0] not in modules}
    named = re.compile("|".join(map(_imports, sorted(outermost))) or r"(?!)", re.MULTILINE)
    packages = tuple(path.removesuffix("__init__.py") for path in gone if "/__init__.py" in path)
    for path, text in sorted(scratch.texts(own).items()):
        if path.endswith((".py", ".toml")) and named.search(text):
            yield f"{path} names a module that is gone"
        elif path.startswith(packages) and packages:
            yield f"{path} is left in a package that is gone"


def _imports(module: str) -> str:
    """A regular expression for what names a module."""
    package, _, name = module.rpartition(".")
    from_package = rf"from {re.escape(package)} import (?:\([^)]*|[^\n(]*)(?<!\w)(?<! as ){name}"
    return rf"(?:(?<![\w.]){re.escape(module)}|{from_package})(?!\w)"


def _find_returned(
    project: Project, changed: Mapping[str, Entry], before: Mapping[str, Entry]
) -> Iterator[str]:
    """Commands that bring back what the team once had in files that were gone since."""
    paths = {
        f"{project.prefix}{path}": each for path, each in changed.items() if path not in before
    }
    if not paths:
        return
    git = project.repository
    listed = git.lines(
        *("-c", "log.showSignature=false", "log", "-z", "--no-renames", "--diff-filter=D"),
        *("--name-only", "--format=format:commit %H", project.head, "--", *paths),
    )
    commit, seen = "", set[str]()
    for line in listed:
        words = line.split("\n", 1)
        if words[0].startswith("commit "):
            commit = words.pop(0).removeprefix("commit ")
        for path in words:
            if path in paths and path not in seen:
                seen.add(path)
                former = git.run("rev-parse", f"{commit}^:{path}").strip()
                if former != paths[path].blob:
                    yield f"git checkout {commit[:12]}^ -- {shlex.quote(f':/{path}')}"


def _report(outcome: _Outcome, template: Template, target: str, *, is_tried: bool) -> None:
    print(f"# From {template.current} to {target}")
    entries = template.changelog(target)
    if is_tried:
        for version, entry in entries.items():
            print(f"\n## {version}\n\n{entry}")
    elif notes := list(advice(entries.values())):
        print("\nWhen you update:\n")
        print(*notes, sep="\n")
    for verdict, files in sorted(outcome.merge.verdicts.items(), key=lambda each: _ORDER[each[0]]):
        if is_tried or verdict not in (Verdict.NEW, Verdict.CHANGED, Verdict.DELETED):
            listed = (f"{path} ({note})" if note else path for path, note in files.items())
            _print_part(f"{len(files)} {verdict}", listed)
        else:
            print(f"\n{len(files)} {verdict}")
    _print_part("Renamed in lines of yours", outcome.renamed)
    _print_part("To repair", outcome.broken)
    _print_part("Back, where you once had other content. To have that again", outcome.returned)
    _print_part("New settings, see .env.example", outcome.new_settings)
    _print_part("Settings that are gone", outcome.gone_settings)
    _print_part("Still set in .env", outcome.still_set)
    print()
    if is_tried:
        print("Nothing was changed.")
    else:
        _print_next_steps(outcome)


def _print_next_steps(outcome: _Outcome) -> None:
    if outcome.has_new_tables:
        print('Tables may have changed: uv run just migration "template update", read it, then')
        print("uv run just migrate.")
    if not outcome.merge.stages:
        print("Updated. Look at `git diff --cached`, run `uv run just check`, commit.")
        print("`uv run just update --abort` takes it back.")
        return
    print("Edit what is in conflict, then `git add` the files. `uv run just update --abort` takes")
    print("all of it back.")
    if outcome.merge.stages.keys() & {"pyproject.toml", "justfile", "devtools/serve.just"}:
        print("uv or just cannot read its file while that is in conflict; use")
        print("`python3 -m devtools.update --abort` meanwhile.")


def _print_part(heading: str, items: Iterable[str]) -> None:
    listed = list(items)
    if listed:
        print(f"\n{heading}:\n")
        _print_list(listed)


def _print_list(items: Iterable[str]) -> None:
    print(*(f"  - {item}" for item in items), sep="\n")


if __name__ == "__main__":
    main()
