"""Brings a merge into the working tree, all of it or nothing, and takes it back on request."""

import errno
import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from devtools.repository import NONE, Entry, Repository, Scratch, UpdateError, parents

_LOCK_FILE = "uv.lock"


@dataclass(frozen=True)
class Project:
    """A service in a git repository, of which it may be one folder.

    Attributes:
        repository: git at the top of the working tree.
        prefix: The service's folder with a slash at its end, or nothing.
        head: The commit that it stands at.
    """

    repository: Repository
    prefix: str
    head: str

    @classmethod
    def open(cls, folder: Path) -> "Project":
        """Find the repository of a folder.

        Raises:
            UpdateError: if there is none, or no commit in it.
        """
        here = Repository(folder)
        try:
            top = here.run("rev-parse", "--show-toplevel").removesuffix("\n")
            prefix = here.run("rev-parse", "--show-prefix").removesuffix("\n")
            head = here.run("rev-parse", "--verify", "HEAD^{commit}").strip()
            names = here.run("rev-parse", "--show-object-format").strip()
        except UpdateError as error:
            message = f"git finds no commit of this folder: {error}"
            raise UpdateError(message) from None
        if names != "sha1":
            message = f"This repository names objects by {names}; updates can merge sha1 only."
            raise UpdateError(message)
        return cls(Repository(Path(top)), prefix, head)

    @property
    def folder(self) -> Path:
        """Where the service is."""
        return self.repository.folder / self.prefix

    def git_path(self, name: str) -> Path:
        """A path in git's own folder, such as that of the index."""
        path = self.repository.run("rev-parse", "--git-path", name).removesuffix("\n")
        return self.repository.folder / path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other updates out; whoever is killed lets go."""
        with self.git_path("template-update.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UpdateError("Another update is at work here; wait for its end.") from None
            yield

    def files(self) -> dict[str, Entry]:
        """What is committed of the service, by its path in it."""
        return self.repository.files(f"{self.head}:{self.prefix.removesuffix('/')}")

    def uncommitted(self) -> list[str]:
        """What a merge could mix its own with: changes, new files and what git is not to look at.

        A lock file that `uv run` has just written is none of that.
        """
        git = self.repository
        if self.git_path("index.lock").exists():
            raise UpdateError("Another git is at work here (.git/index.lock); try again later.")
        for name in (
            "MERGE_HEAD",
            "CHERRY_PICK_HEAD",
            "REVERT_HEAD",
            "rebase-merge",
            "rebase-apply",
        ):
            if self.git_path(name).exists():
                message = f"Something else is not finished here ({name}); see `git status`."
                raise UpdateError(message)
        git.run("update-index", "-q", "--refresh", accepted=(0, 1))
        listed = {
            *git.lines("diff-index", "-z", "--name-only", "--cached", self.head),
            *git.lines("diff-files", "-z", "--name-only"),
            *git.lines("ls-files", "-z", "--others", "--exclude-standard"),
        }
        return sorted(listed - {f"{self.prefix}{_LOCK_FILE}"})

    def unseen(self) -> set[str]:
        """Files of the index whose changes git has been told not to see."""
        tagged = self.repository.lines("ls-files", "-v", "-z")
        return {path for tag, path in (line.split(" ", 1) for line in tagged) if tag != "H"}


class Change:
    """What an update is about to do, and how to take it back; kept in git's own folder.

    Whatever is written is complete before the first file of the working tree is touched, and each
    file is put in its place at once. So at any moment a file is what it was or what it becomes.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._folder = project.git_path("template-update")
        self._top = project.repository.folder

    @property
    def is_unfinished(self) -> bool:
        """Whether an update was killed while it wrote."""
        return self._folder.exists() and not (self._folder / "finished").exists()

    def prepare(self, scratch: Scratch, files: Mapping[str, Entry]) -> None:
        """Write down what `files`, by path in the service, will change.

        Raises:
            UpdateError: if something is in the way that git does not know.
        """
        project = self._project
        before = {f"{project.prefix}{k}": v for k, v in project.files().items()}
        after = {f"{project.prefix}{k}": v for k, v in files.items()}
        changed = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
        self._refuse_obstacles(set(changed), before, after)
        index = project.git_path("index")
        aside = self._folder.with_name("template-update.new")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self._folder, ignore_errors=True)
        aside.mkdir()
        _copy_objects(scratch.objects, project.git_path("objects"))
        shutil.copy2(index, aside / "index.before")
        shutil.copy2(index, aside / "index")
        changes = _index_lines({path: after.get(path) for path in changed})
        listed = "".join(f"{path}\0" for path in changed if path in after)
        with_index = {"GIT_INDEX_FILE": str((aside / "index").resolve())}
        git = project.repository
        git.run("update-index", "-z", "--index-info", given=changes, environment=with_index)
        # As any checkout writes them: with the line ends and filters of this repository.
        new = (aside / "new").resolve()
        git.run(
            *("checkout-index", "-z", "--force", "--stdin", f"--prefix={new}/"),
            given=listed,
            environment=with_index,
        )
        written = {path: _digest(new / path) for path in changed}
        kept = [*changed, f"{project.prefix}{_LOCK_FILE}"]
        for number, path in enumerate(kept):
            if _digest(self._top / path) is not None:
                _copy(self._top / path, aside / "before" / str(number))
        plan = {"head": project.head, "kept": kept, "written": written}
        (aside / "plan.json").write_text(json.dumps(plan))
        aside.rename(self._folder)

    def carry_out(self, stages: Mapping[str, Mapping[int, Entry]]) -> None:
        """Do what was prepared; what is in conflict stands in the index as after any merge."""
        plan = json.loads((self._folder / "plan.json").read_text())
        for path, digest in plan["written"].items():
            if digest is None:
                _remove(self._top / path, self._top)
        for path, digest in plan["written"].items():
            if digest is not None:
                _put(self._folder / "new" / path, self._top / path)
        prefix = self._project.prefix
        conflicts = "".join(
            f"0 {NONE}\t{prefix}{path}\0"
            + "".join(f"{each.mode} {each.blob} {n}\t{prefix}{path}\0" for n, each in of.items())
            for path, of in stages.items()
        )
        index = self._folder / "index"
        with_index = {"GIT_INDEX_FILE": str(index.resolve())}
        git = self._project.repository
        git.run("update-index", "-z", "--index-info", given=conflicts, environment=with_index)
        git.run("update-index", "-q", "--refresh", accepted=(0, 1), environment=with_index)
        _put(index, self._project.git_path("index"))
        (self._folder / "finished").touch()

    def take_back(self) -> list[Path]:
        """Restore every file and the index as they were before the update.

        Returns:
            Copies of files that somebody has edited since.

        Raises:
            UpdateError: if there is no update, or if it was committed.
        """
        shutil.rmtree(self._folder.with_name("template-update.new"), ignore_errors=True)
        if not self._folder.exists():
            raise UpdateError("There is no update to take back.")
        plan = json.loads((self._folder / "plan.json").read_text())
        if plan["head"] != self._project.head:
            message = (
                "Another commit is checked out than before the update. If the update was committed,"
                f" take it back with `git revert`. Otherwise go to {plan['head']}, or have the"
                " update forgotten: rm -r .git/template-update"
            )
            raise UpdateError(message)
        # A folder for each time: none takes what another has kept.
        aside = Path(tempfile.mkdtemp(prefix="template-update.edited.", dir=self._folder.parent))
        edited, brought_back = [], {}
        for number, path in enumerate(plan["kept"]):
            file, before = self._top / path, self._folder / "before" / str(number)
            now, then = _digest(file), _digest(before)
            if now == then and _mode(file) == _mode(before):
                continue
            if now not in (None, then, plan["written"].get(path, now)):
                _copy(file, aside / path)
                edited.append(aside / path)
            if then is None:
                _remove(file, self._top)
            else:
                brought_back[file] = before
        for file, before in brought_back.items():
            if file.is_dir() and not file.is_symlink():
                # The update made a folder in a file's place, and something has come into it since.
                kept = aside / file.relative_to(self._top)
                kept.parent.mkdir(parents=True, exist_ok=True)
                edited.append(Path(shutil.move(file, kept)))
            _copy(before, copy := self._folder / "restored")
            _put(copy, file)
        _copy(self._folder / "index.before", copy := self._folder / "restored")
        _put(copy, self._project.git_path("index"))
        self.forget()
        if not edited:
            aside.rmdir()
        return edited

    def forget(self) -> None:
        """Drop what is known of the last update."""
        if self._folder.exists():
            done = self._folder.with_name("template-update.done")
            shutil.rmtree(done, ignore_errors=True)
            self._folder.rename(done)
            shutil.rmtree(done)

    def _refuse_obstacles(
        self, changed: set[str], before: Mapping[str, Entry], after: Mapping[str, Entry]
    ) -> None:
        found = {
            path
            for path in changed - before.keys()
            if _exists(self._top / path) and not self._is_emptied(path, changed - after.keys())
        }
        for path in changed & after.keys():
            for folder in parents(path):
                file = self._top / folder
                # A link to a folder would lead out of the service.
                if _exists(file) and (file.is_symlink() or not file.is_dir()):
                    found |= {folder} - (changed - after.keys())
        if found:
            listed = "\n".join(f"  {path}" for path in sorted(found))
            message = f"git does not know these files, which are in the way. Move them:\n{listed}"
            raise UpdateError(message)
        if hidden := self._project.unseen() & changed:
            listed = "\n".join(f"  {path}" for path in sorted(hidden))
            message = (
                "git has been told not to see changes in these, or they are not checked out "
                f"(git update-index --no-assume-unchanged --no-skip-worktree FILE):\n{listed}"
            )
            raise UpdateError(message)

    def _is_emptied(self, path: str, gone: set[str]) -> bool:
        """Whether it is a folder of which the update leaves nothing."""
        folder = self._top / path
        if folder.is_symlink() or not folder.is_dir():
            return False
        files = (each for each in folder.rglob("*") if each.is_symlink() or not each.is_dir())
        return all(each.relative_to(self._top).as_posix() in gone for each in files)


def _index_lines(entries: Mapping[str, Entry | None]) -> str:
    removed = "".join(f"0 {NONE}\t{path}\0" for path in entries)
    return removed + "".join(
        f"{entry.mode} {entry.blob}\t{path}\0" for path, entry in entries.items() if entry
    )


def _copy_objects(source: Path, target: Path) -> None:
    for path in source.glob("??/*"):
        copy = target / path.relative_to(source)
        if not copy.exists():
            copy.parent.mkdir(exist_ok=True)
            unfinished = copy.with_name(f"tmp_obj_{copy.name}")
            shutil.copy2(path, unfinished)
            unfinished.replace(copy)


def _exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _mode(path: Path) -> int | None:
    return path.lstat().st_mode if _exists(path) else None


def _digest(path: Path) -> str | None:
    """What tells a file's content from others; none where there is no file."""
    if path.is_symlink():
        return f"link {path.readlink()}"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def _put(source: Path, target: Path) -> None:
    """Move a file to its place, in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # git's folder may be on another disk.
        with tempfile.TemporaryDirectory(prefix=".update-", dir=target.parent) as folder:
            near = Path(folder, "new")
            _copy(source, near)
            near.replace(target)


def _remove(path: Path, top: Path) -> None:
    """Delete a file, and the folders that are empty without it."""
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == top or folder.is_symlink() or (folder.is_dir() and any(folder.iterdir())):
            break
        if folder.is_dir():
            folder.rmdir()
