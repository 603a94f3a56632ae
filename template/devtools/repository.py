"""git, asked in ways whose answers do not depend on what the user has configured."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# What a hook or a caller may have set for a repository of its own.
_OTHERS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_PREFIX",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
    "GIT_LITERAL_PATHSPECS",
    "GIT_GLOB_PATHSPECS",
    "GIT_ICASE_PATHSPECS",
    "GIT_NOGLOB_PATHSPECS",
    "GIT_DEFAULT_HASH",
    "GIT_ATTR_SOURCE",
)
NONE = "0" * 40
FILE, PROGRAM, LINK = "100644", "100755", "120000"


# No configuration but a repository's own.
ISOLATED = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "0",
    "GIT_CONFIG_PARAMETERS": "",
    "GIT_ATTR_NOSYSTEM": "1",
}


class UpdateError(Exception):
    """The update cannot go on, and has changed nothing; the message says what to do."""


def own_environment() -> dict[str, str]:
    """This process's environment without what leads git to another repository."""
    return {name: value for name, value in os.environ.items() if name not in _OTHERS}


@dataclass(frozen=True)
class Entry:
    """A file in a tree: its mode in octal digits and the id of its content."""

    mode: str
    blob: str


class Repository:
    """A folder in which git is run."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Run git in `folder`, with more variables in its environment."""
        self.folder = folder
        self._environment = {**own_environment(), "LC_ALL": "C", **(environment or {})}

    def run(
        self,
        *arguments: str,
        given: str = "",
        accepted: Iterable[int] = (0,),
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run git and return its output; bytes that are not UTF-8 become surrogates.

        Args:
            arguments: The command and its own.
            given: What git reads from its standard input.
            accepted: The exit codes that are no error.
            environment: More variables for this run.

        Raises:
            UpdateError: for any other exit code.
        """
        result = subprocess.run(
            ["git", *arguments],
            check=False,
            cwd=self.folder,
            env={**self._environment, **(environment or {})},
            input=os.fsencode(given),
            capture_output=True,
        )
        if result.returncode not in accepted:
            told = os.fsdecode(result.stderr).strip()
            raise UpdateError(f"git {arguments[0]} failed: {told or result.returncode}")
        return os.fsdecode(result.stdout)

    def lines(self, *arguments: str, environment: Mapping[str, str] | None = None) -> list[str]:
        """Run a command that ends what it lists with NUL."""
        output = self.run(*arguments, environment=environment)
        return [line for line in output.split("\0") if line]

    def files(self, tree: str) -> dict[str, Entry]:
        """Every file of a tree, by path."""
        found = {}
        for line in self.lines("ls-tree", "-r", "-z", "--full-tree", tree):
            about, _, path = line.partition("\t")
            mode, _, blob = about.split(" ")
            found[path] = Entry(mode, blob)
        return found

    def texts(self, files: Mapping[str, Entry]) -> dict[str, str]:
        """The contents of files, by path."""
        wanted = {path: each.blob for path, each in files.items() if each.mode in (FILE, PROGRAM)}
        asked = "".join(f"{blob}\n" for blob in wanted.values())
        output = os.fsencode(self.run("cat-file", "--batch", given=asked))
        found, start = {}, 0
        for path in wanted:
            end = output.index(b"\n", start)
            size = int(output[start:end].rpartition(b" ")[2])
            found[path] = os.fsdecode(output[end + 1 : end + 1 + size])
            start = end + size + 2
        return found


class Scratch(Repository):
    """A bare repository that sees another one's objects and keeps its own to itself."""

    def __init__(self, folder: Path, objects: Path) -> None:
        """Make it in `folder`, which must be empty, beside the objects of the other."""
        isolated = {
            **ISOLATED,
            "GIT_INDEX_FILE": str(folder / "index"),
            **{f"GIT_{who}_NAME": "update" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "update@example.invalid" for who in ("AUTHOR", "COMMITTER")},
        }
        super().__init__(folder, isolated)
        self.run("init", "--quiet", "--bare", "--template=", ".")
        self.objects = folder / "objects"
        (self.objects / "info").mkdir(exist_ok=True)
        (self.objects / "info" / "alternates").write_bytes(os.fsencode(f"{objects}\n"))

    def add(self, text: str) -> str:
        """Store a content and return its id."""
        return self.run("hash-object", "-w", "--no-filters", "--stdin", given=text).strip()

    def tree(self, files: Mapping[str, Entry]) -> str:
        """Store a tree and return its id."""
        self.run("read-tree", "--empty")
        listed = "".join(f"{each.mode} {each.blob}\t{path}\0" for path, each in files.items())
        self.run("update-index", "-z", "--index-info", given=listed)
        return self.run("write-tree").strip()

    def read_folder(self, folder: Path) -> dict[str, Entry]:
        """Store what a folder holds as it is: no filter, no line ends converted."""
        paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
        links = [path for path in paths if path.is_symlink()]
        regular = [path for path in paths if not path.is_symlink()]
        listed = "".join(f"{path}\n" for path in regular)
        blobs = self.run("hash-object", "-w", "--no-filters", "--stdin-paths", given=listed)
        found = {
            path.relative_to(folder).as_posix(): Entry(
                PROGRAM if path.stat().st_mode & 0o100 else FILE, blob
            )
            for path, blob in zip(regular, blobs.split(), strict=True)
        }
        for path in links:
            target = self.add(str(path.readlink()))
            found[path.relative_to(folder).as_posix()] = Entry(LINK, target)
        return found


def parents(path: str) -> Iterator[str]:
    """The folders above a path, from the innermost."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
