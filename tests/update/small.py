"""A small template and services of it, in which the update is tried on real repositories."""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.service import clean_environment
from tests.snapshot import ROOT, read_tree
from tests.update.repository import commit, run_git

HERE = Path(__file__).parent
LINES = "".join(f"line {number}\n" for number in range(1, 31))
# What the first release renders.
FIRST = {
    "app/__init__.py": "",
    "app/core/__init__.py": "",
    "app/core/stack.py": f'"""The stack."""\n\nLIMIT = 10\n{LINES}',
    "app/core/cache.py": f'"""The cache."""\n\nSECONDS = 60\n{LINES}'.replace("line", "entry"),
    "app/core/gone.py": f'"""What the next release does without."""\n\nWHAT = 1\n{LINES}'.replace(
        "line", "word"
    ),
    "README.md": f"# A service\n\n{LINES}",
    ".env.example": "# How much.\nLIMIT=10\n# How long.\nCACHE_TTL=60\n",
    "migrations/versions/0001_initial.py": "revision = '0001'\n",
}
CHANGELOG = """# Changelog

## [1.1.0] - 2026-02-01

The limit is higher.

When you update: run `true`.

## [1.0.0] - 2026-01-01

The first.
"""


class Small:
    """A template in a git repository and a service of its first release, in which a team works."""

    def __init__(self, folder: Path) -> None:
        """Make both below `folder`, which is where git's configuration of the user is, too."""
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        (self.home / ".gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.com\n")
        self.template = folder / "template"
        (self.template / "template").mkdir(parents=True)
        run_git(self.template, "init", "--quiet")
        self.release("1.0.0", FIRST)
        self.repository = self.service = folder / "service"
        self._write(self.service, FIRST)
        answers = (
            f"# Changes here will be overwritten.\n_commit: 1.0.0\n_src_path: {self.template}\n"
        )
        self.write({".copier-answers.yml": answers})
        self.git("init", "--quiet")
        self.save()

    def release(self, version: str, files: Mapping[str, str | None], **others: str) -> None:
        """Release the template with changed files, of which `None` is gone.

        Args:
            version: The tag.
            files: What is rendered.
            others: What the repository holds besides: `changelog` and `renames`.
        """
        self._write(self.template / "template", files)
        names = {"changelog": "CHANGELOG.md", "renames": "renames.toml"}
        self._write(self.template, {names[name]: text for name, text in others.items()})
        commit(self.template, version)
        run_git(self.template, "tag", version)

    def write(self, files: Mapping[str, str | None]) -> None:
        """Change the service's files, of which `None` is gone."""
        self._write(self.service, files)

    def read(self, name: str) -> str:
        """A file of the service."""
        return (self.service / name).read_bytes().decode()

    def save(self) -> None:
        """Commit everything in the service."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--no-verify", "--message", "work")

    def git(self, *arguments: str) -> str:
        """Run git in the service as the user, with the user's configuration."""
        return subprocess.run(
            ["git", *arguments],
            cwd=self.service,
            env=self.environment(),
            check=True,
            capture_output=True,
            text=True,
            errors="surrogateescape",
        ).stdout

    def update(
        self,
        *arguments: str,
        code: int = 0,
        kill: tuple[int, int] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> str:
        """Run what `just update` runs and return what it prints.

        Args:
            arguments: The user's.
            code: The exit code that is expected.
            kill: Which signal it sends to itself before which of its steps in the working tree.
            extra: More environment variables.
        """
        if kill:
            command = [str(HERE / "inside" / "killed_update.py"), *map(str, kill)]
        else:
            command = ["-m", "devtools.update"]
        result = subprocess.run(
            [sys.executable, *command, *arguments],
            cwd=self.service,
            env={**self.environment(), **(extra or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
        )
        assert result.returncode == code, result.stdout
        assert "Traceback" not in result.stdout, result.stdout
        return result.stdout

    def environment(self) -> dict[str, str]:
        """Of the user, with a stand-in for Copier that renders nothing but copies."""
        stand_in = shlex.join([sys.executable, "-S", str(HERE / "inside" / "copying_copier.py")])
        own = {"HOME": str(self.home), "COPIER": stand_in, "XDG_CONFIG_HOME": str(self.home)}
        return clean_environment({**own, "PYTHONPATH": str(ROOT / "template")})

    def tree(self) -> dict[str, bytes]:
        """Every file of the service but git's own, with what git has in its index."""
        files = read_tree(self.service)
        tree = {name: content for name, content in files.items() if not name.startswith(".git/")}
        # And modes, and what stands in the index.
        for name in list(tree):
            tree[f"{name} mode"] = oct(os.lstat(self.service / name).st_mode).encode()
        tree["index"] = self.git("ls-files", "--stage").encode("utf-8", "surrogateescape")
        return tree

    @staticmethod
    def _write(folder: Path, files: Mapping[str, str | None]) -> None:
        for name, text in files.items():
            path = folder / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(text.encode())
