"""A git repository of the template: its releases, the working tree, and a release to come."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import copier
import pytest
import yaml

from tests.rendering import WITHOUT_FILES, fast_copier
from tests.snapshot import ROOT, copy_template
from tests.update.next_major import make_next_major
from tests.update.next_release import make_next_release

RELEASE_HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\]", re.MULTILINE)
# What the newest commit is called as long as there is no release.
UNRELEASED = "0.0.1"


class TemplateRepository:
    """Every release that there was, `head`, made of the working tree, `next` and `major`, made up.

    `major` moves files. `next` makes sure that there is something to update to: right after a
    release, or as long as there is none, the releases hold what the working tree holds.
    """

    def __init__(self, folder: Path) -> None:
        """Make the repository in `folder`, which must not exist."""
        self.folder = folder
        self._questions: dict[str, set[str]] = {}
        _refuse_incomplete_history()
        run_git(ROOT, "clone", "--quiet", "--no-tags", ".", str(folder))
        self.releases = self._tag_releases()
        self.head = self._commit_working_tree()
        self.next = self._commit_next_release()
        self.major = self._commit_next_major()
        self.steps = (*((release, self.head) for release in self.releases), (self.head, self.next))

    def copy(self, version: str, destination: Path, **answers: Any) -> Path:
        """Render a release as a service in a git repository of its own, all committed.

        A feature that the release does not know may be answered with `False`.
        """
        self.render(version, destination, **answers)
        run_git(destination, "init", "--quiet")
        commit(destination, "Start from the template")
        return destination

    def render(self, version: str, destination: Path, **answers: Any) -> Path:
        """Render a release as a service, without git."""
        known = self.questions(version)
        others = {name: answer for name, answer in WITHOUT_FILES.items() if name in known}
        given = {name: answer for name, answer in answers.items() if answer or name in known}
        with fast_copier():
            copier.run_copy(
                str(self.folder),
                destination,
                data={**others, **given},
                defaults=True,
                quiet=True,
                unsafe=False,
                vcs_ref=version,
            )
        return destination

    def questions(self, version: str) -> set[str]:
        """What a release asks."""
        if version not in self._questions:
            config = run_git(self.folder, "show", f"{version}:copier.yml")
            self._questions[version] = set(yaml.safe_load(config))
        return self._questions[version]

    def _tag_releases(self) -> tuple[str, ...]:
        """Tag the commit that added a release's heading to the changelog; oldest first."""
        commits = run_git(ROOT, "log", "--reverse", "--format=%H", "--", "CHANGELOG.md").split()
        found: dict[str, str] = {}
        for revision in commits:
            for version in _headings(run_git(ROOT, "show", f"{revision}:CHANGELOG.md")):
                found.setdefault(version, revision)
        versions = sorted(found, key=_sort_key)
        for version in versions:
            run_git(self.folder, "tag", version, found[version])
        if not versions:
            run_git(self.folder, "tag", UNRELEASED)
            return (UNRELEASED,)
        return tuple(versions)

    def _commit_working_tree(self) -> str:
        for path in self.folder.iterdir():
            if path.name != ".git":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        copy_template(self.folder)
        changelog = self.folder / "CHANGELOG.md"
        announced = _headings(changelog.read_text()) if changelog.exists() else []
        new = [version for version in announced if version not in self.releases]
        major, minor, patch = _sort_key(self.releases[-1])
        version = max(new, key=_sort_key) if new else f"{major}.{minor}.{patch + 1}"
        commit(self.folder, "The working tree")
        run_git(self.folder, "tag", version)
        return version

    def _commit_next_release(self) -> str:
        make_next_release(self.folder)
        major, minor, patch = _sort_key(self.head)
        return self._tag("What may come next", f"{major}.{minor}.{patch + 1}")

    def _commit_next_major(self) -> str:
        major, _, _ = _sort_key(self.head)
        version = f"{major + 1}.0.0"
        make_next_major(self.folder, version)
        return self._tag("What may come one day", version)

    def _tag(self, message: str, version: str) -> str:
        commit(self.folder, message)
        run_git(self.folder, "tag", version)
        # Who clones the repository goes on from the working tree.
        run_git(self.folder, "reset", "--quiet", "--hard", self.head)
        return version


def run_git(folder: Path, *arguments: str) -> str:
    """Run git as nobody in particular and answer its output."""
    identity = ["-c", "user.name=Team", "-c", "user.email=team@example.com"]
    settings = ["-c", "init.defaultBranch=main", "-c", "commit.gpgSign=false"]
    command = ["git", *identity, *settings, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"`{' '.join(command)}` in {folder}:\n{result.stdout}{result.stderr}")
    return result.stdout


def commit(folder: Path, message: str) -> None:
    """Commit everything in a folder that git does not ignore."""
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", message)


def _refuse_incomplete_history() -> None:
    if not (ROOT / ".git").exists():
        pytest.fail("updates start from earlier commits: run the tests in a git clone")
    if run_git(ROOT, "rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.fail(
            "updates start from earlier commits, and this clone has not all of them: run "
            "`git fetch --unshallow` (in CI: check out with a fetch depth of 0)"
        )


def _headings(changelog: str) -> list[str]:
    return RELEASE_HEADING.findall(changelog)


def _sort_key(version: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in version.split("."))
    return major, minor, patch
