"""What becomes of a service when the template goes on: a three-way merge that git makes.

Beside the working tree, from three trees: what the release that the service comes from renders
(the base), what the service is now (ours), and what the new release renders (theirs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from devtools.repository import Entry, Scratch, UpdateError

# A folder of one side that became another is no reason to move what the other side added to it.
_OPTIONS = ("merge.directoryRenames=false", "merge.renameLimit=30000", "diff.renameLimit=30000")

Files = Mapping[str, Entry]


class Verdict(StrEnum):
    """What an update does to a file, in the order in which it is told."""

    CONFLICT = "in conflict: you and the template changed the same lines"
    DELETED_BUT_CHANGED = "in conflict: the template deleted what you had changed"
    STAYS_DELETED = "changed by the template, but deleted by you: it stays deleted"
    MOVED_BY_YOU = "changed by the template, where you had moved it"
    MERGED = "merged with your change"
    MOVED = "moved by the template"
    NEW = "new"
    CHANGED = "changed"
    DELETED = "deleted"


@dataclass
class Merge:
    """The outcome: files, what is in conflict, and a verdict for each file that it concerns.

    `stages` has, by path, the base's, our and their version of what is in conflict (1, 2 and 3).
    A verdict's value is what else to say of the file, such as its former path.
    """

    files: dict[str, Entry]
    stages: dict[str, dict[int, Entry]]
    verdicts: dict[Verdict, dict[str, str]] = field(default_factory=dict)


def merge(scratch: Scratch, base: Files, ours: Files, theirs: Files, label: str) -> Merge:
    """Merge the changes from `base` to `theirs` into `ours`.

    Args:
        scratch: Where the contents of all three are, and where the outcome's will be.
        base: What the service was made of.
        ours: What it is.
        theirs: What it would be made of now.
        label: What conflict markers call the template.
    """
    first = _commit(scratch, base, "base")
    commits = [
        _commit(scratch, files, name, first) for name, files in (("yours", ours), (label, theirs))
    ]
    options = [word for option in _OPTIONS for word in ("-c", option)]
    command = ("merge-tree", "--write-tree", "-z", "--no-messages", "yours", label)
    try:
        output = scratch.run(*options, *command, accepted=(0, 1))
    except UpdateError as error:
        message = f"git cannot merge; version 2.38 or newer is needed: {error}"
        raise UpdateError(message) from None
    tree, *conflicts = [line for line in output.split("\0") if line]
    merged = Merge(scratch.files(tree), {})
    for line in conflicts:
        about, _, path = line.partition("\t")
        mode, blob, stage = about.split(" ")
        merged.stages.setdefault(path, {})[int(stage)] = Entry(mode, blob)
    for path, stages in list(merged.stages.items()):
        if 2 not in stages and 1 in stages:
            # The team deleted it, maybe at the place from which the template has moved it. Who
            # deleted a file of the template does not want its next version either.
            merged.files.pop(path, None)
            del merged.stages[path]
    moves = (_moves(scratch, options, first, commit) for commit in commits)
    _judge(merged, (base, ours, theirs), *moves)
    return merged


def _commit(scratch: Scratch, files: Files, name: str, *parent: str) -> str:
    """Commit a tree, on a branch of that name: git takes the names of branches for markers."""
    tree = scratch.tree(files)
    of = [word for each in parent for word in ("-p", each)]
    commit = scratch.run("commit-tree", tree, "-m", name, *of).strip()
    scratch.run("update-ref", f"refs/heads/{name}", commit)
    return commit


def _moves(scratch: Scratch, options: list[str], old: str, new: str) -> dict[str, str]:
    """The new path of each file that has been moved, by its old one."""
    listed = scratch.lines(
        *options,
        *("diff-tree", "-r", "-z", "-M", "--no-rename-empty", "--diff-filter=R", "--name-status"),
        *(old, new),
    )
    return dict(zip(listed[1::3], listed[2::3], strict=True))


def _judge(
    merged: Merge,
    sides: tuple[Files, Files, Files],
    our_moves: Mapping[str, str],
    their_moves: Mapping[str, str],
) -> None:
    """Say of each file that the template changed, added, moved or deleted what becomes of it."""
    base, ours, theirs = sides
    # A file that the template moved from a.py to b.py, and the team from a.py to c.py, has the
    # source a.py; the template's is b.py, and mine is c.py.
    sources = {new: old for old, new in their_moves.items()}
    for path in sorted({*base, *theirs}):
        source = sources.get(path, path)
        if path in their_moves or (source == path and base.get(path) == theirs.get(path)):
            continue
        mine = our_moves.get(source, source)
        verdict, note = _verdict(
            merged, base.get(source), ours.get(mine), theirs.get(path), (source, mine, path)
        )
        if verdict:
            merged.verdicts.setdefault(verdict, {})[path] = note
    told = {path for paths in merged.verdicts.values() for path in paths}
    for path, stages in merged.stages.items():
        if path not in told:
            kind = Verdict.CONFLICT if 3 in stages else Verdict.DELETED_BUT_CHANGED
            merged.verdicts.setdefault(kind, {})[path] = ""


def _verdict(  # noqa: PLR0911 - one line for each way in which two changes can meet
    merged: Merge,
    before: Entry | None,
    mine: Entry | None,
    after: Entry | None,
    paths: tuple[str, str, str],
) -> tuple[Verdict | None, str]:
    source, own, path = paths
    if {path, own} & merged.stages.keys():
        stages = merged.stages.get(path) or merged.stages[own]
        note = "" if own == path else f"now {own}"
        return (Verdict.CONFLICT if 3 in stages else Verdict.DELETED_BUT_CHANGED), note
    if before is None:
        if mine == after:
            return None, ""
        return (Verdict.MERGED if mine else Verdict.NEW), ""
    if mine is None:
        return (Verdict.STAYS_DELETED if after else None), ""
    if after is None:
        return Verdict.DELETED, ""
    if own != source:
        return Verdict.MOVED_BY_YOU, f"now {own}"
    if source != path:
        return Verdict.MOVED, f"from {source}" + (", with your change" if mine != before else "")
    if mine == after:
        return None, ""
    return (Verdict.CHANGED if mine == before else Verdict.MERGED), ""
