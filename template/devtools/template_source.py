"""The template that a service comes from: its releases, its changelog, and what it renders."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from devtools.repository import ISOLATED, Repository, UpdateError, own_environment

ANSWERS = ".copier-answers.yml"
_COPIER = "copier>=9.19,<10"
# Copier's short names of hosts.
_HOSTS = {"gh:": "https://github.com/", "gl:": "https://gitlab.com/"}
_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?![.\d]*(?:a|b|rc|dev))")
_HEADING = re.compile(r"^## \[(\d+\.\d+\.\d+)\].*$", re.MULTILINE)
_ENTRY = re.compile(r"^([A-Za-z_]\w*):((?: .*)?(?:\n[ \t]+.*)*)$", re.MULTILINE)
_REFUSAL = re.compile(r"has no attribute '(.+)'\s*$")

Version = tuple[int, int, int]


class Answers:
    """The answers file of a service."""

    def __init__(self, folder: Path) -> None:
        """Read that of a folder.

        Raises:
            UpdateError: if there is none, or if it does not say where it comes from.
        """
        try:
            self.text = (folder / ANSWERS).read_text("utf-8")
        except OSError:
            message = f"{ANSWERS} is missing: this folder was not made from a template."
            raise UpdateError(message) from None
        except UnicodeDecodeError:
            raise UpdateError(f"{ANSWERS} is no text in UTF-8; its history has one.") from None
        self._entries = {name: " ".join(text.split()) for name, text in _ENTRY.findall(self.text)}
        self.source, self.release = (self._value(name) for name in ("_src_path", "_commit"))

    def with_source(self, source: str) -> str:
        """The file's text with another source."""
        return _replace(self.text, f"_src_path: {json.dumps(source)}")

    def take_over_source(self, text: str) -> str:
        """Another answers file's text with this one's source."""
        return _replace(text, f"_src_path: {self._entries['_src_path']}")

    def _value(self, name: str) -> str:
        value = self._entries.get(name, "")
        if not value:
            message = (
                f"{ANSWERS} has no {name}. It must name the template (`_src_path: URL`) and the "
                "release that the service comes from (`_commit: 1.2.3`); its history has both."
            )
            raise UpdateError(message)
        if value[0] == '"':
            try:
                return str(json.loads(value))
            except ValueError:
                message = f"{ANSWERS} has no readable {name}: {value}"
                raise UpdateError(message) from None
        return value[1:-1].replace("''", "'") if value[0] == "'" else value


class Template:
    """A clone of the template, with the release that a service comes from."""

    def __init__(self, answers: Answers, project: Path, folder: Path) -> None:
        """Clone into `folder`.

        Raises:
            UpdateError: if the source cannot be reached, or does not have the release.
        """
        url = _url(answers.source, project)
        self.folder = folder
        self._git = Repository(folder)
        try:
            Repository(folder.parent).run(
                *("clone", "--quiet", "--no-checkout", "--", url, str(folder))
            )
        except UpdateError as error:
            message = f"The template cannot be reached at {answers.source} (_src_path): {error}"
            raise UpdateError(message) from None
        self.current = answers.release
        try:
            self._current = self._commit(answers.release)
        except UpdateError:
            message = (
                f"The template at {answers.source} has no release {answers.release}, from which "
                "this service comes. Is it another template, or a shallow clone of it?"
            )
            raise UpdateError(message) from None

    def target(self, wanted: str | None) -> str | None:
        """The release to go to: the wanted one, or the newest; none if that is not newer.

        Raises:
            UpdateError: if there is no such release, or if it is older.
        """
        name = wanted or self._newest()
        if name is None:
            return None
        try:
            commit = self._commit(name)
        except UpdateError:
            raise UpdateError(f"The template has no release {name}.") from None
        if commit == self._current:
            return None
        if self._is_ancestor(commit, self._current):
            if wanted:
                message = f"{name} is older than {self.current}, from which this service comes."
                raise UpdateError(message)
            return None
        return name

    def changelog(self, target: str) -> dict[str, str]:
        """The entries of the releases after the current one, newest first, by version."""
        known = _HEADING.findall(self.read(self.current, "CHANGELOG.md"))
        parts = _HEADING.split(self.read(target, "CHANGELOG.md"))[1:]
        current = version(self.current)
        return {
            name: entry.strip()
            for name, entry in zip(parts[::2], parts[1::2], strict=True)
            if name not in known and (not current or (version(name) or current) > current)
        }

    def read(self, release: str, path: str) -> str:
        """A file of the template's own repository; nothing if it is not there."""
        try:
            return self._git.run("show", f"{self._commit(release)}:{path}")
        except UpdateError:
            return ""

    def render(
        self, answers: Answers, release: str, folder: Path, *options: str, asks: bool = False
    ) -> None:
        """Render a release with a service's answers into an empty folder.

        Args:
            answers: The service's.
            release: Which one.
            folder: Where to.
            options: Copier's, such as `--data=NAME=VALUE`.
            asks: Whether questions that have no answer yet are asked in the terminal.

        Raises:
            UpdateError: with what Copier says.
        """
        folder.mkdir()
        (folder / ANSWERS).write_text(answers.with_source(str(self.folder)), "utf-8")
        named = shlex.split(os.environ.get("COPIER", ""))
        # Of a fresh copy rather than an update: this is what makes the two that are compared.
        command = [*(named or _copier()), "recopy", "--overwrite", "--quiet", "--skip-answered"]
        command += [f"--vcs-ref={release}", *options]
        if not asks:
            command.append("--defaults")
        result = subprocess.run(
            [*command, str(folder)],
            check=False,
            # It clones from here, and nobody's line ends or hooks are to be in what it renders.
            env={**own_environment(), **ISOLATED},
            stdin=None if asks else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        if result.returncode:
            raise UpdateError(_explain(os.fsdecode(result.stderr), release))
        file = folder / ANSWERS
        if Answers(folder).release == answers.release != release:
            raise UpdateError(f"Copier has rendered {answers.release} instead of {release}.")
        file.write_text(answers.take_over_source(file.read_text("utf-8")), "utf-8")

    def _newest(self) -> str | None:
        found = [(number, tag) for tag in self._git.run("tag").split() if (number := version(tag))]
        return max(found)[1] if found else None

    def _commit(self, name: str) -> str:
        return self._git.run("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()

    def _is_ancestor(self, old: str, new: str) -> bool:
        return self._git.run("rev-list", "-1", old, f"^{new}") == ""


def version(name: str) -> Version | None:
    """The numbers of a release's name (`1.2.3`, `v1.2.3`, `1.2.3-4-gabcdef`); none of another."""
    match = _VERSION.match(name)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def advice(entries: Iterable[str]) -> Iterator[str]:
    """The parts of changelog entries that say what to do in an update."""
    for entry in entries:
        _, heading, text = entry.partition("When you update:")
        if heading:
            yield text.strip()


def _replace(text: str, entry: str) -> str:
    name = entry.partition(":")[0]
    return _ENTRY.sub(lambda match: entry if match[1] == name else match[0], text)


def _url(source: str, project: Path) -> str:
    for short, host in _HOSTS.items():
        if source.startswith(short):
            return f"{host}{source.removeprefix(short).strip('/').removesuffix('.git')}.git"
    if re.match(r"\w[\w+.-]*://|[^/]+:", source):
        return source.removeprefix("git+")
    folder = Path(os.path.expanduser(source))  # noqa: PTH111 - which raises for an unknown user
    if not folder.is_absolute():
        message = (
            f"_src_path in {ANSWERS} is {source}, and nobody knows from where: put the template's "
            "address or an absolute path there and commit it."
        )
        raise UpdateError(message)
    if folder.resolve() == project.resolve():
        message = (
            f"_src_path in {ANSWERS} is this service itself: put the template's address there "
            "and commit it."
        )
        raise UpdateError(message)
    return str(folder)


def _copier() -> Sequence[str]:
    # uv tells its own path to what it runs; otherwise it may be a package of this Python.
    uv = os.environ.get("UV") or shutil.which("uv")
    found = [uv] if uv else [sys.executable, "-m", "uv"]
    return [*found, "tool", "run", "--quiet", "--from", _COPIER, "copier"]


def _explain(printed: str, release: str) -> str:
    last = printed.strip().splitlines()[-1:] or ["it said nothing"]
    # A template can refuse an answer only by a name that does not exist.
    refused = _REFUSAL.search(last[0])
    return refused[1] if refused else f"Copier could not render {release}: {last[0]}"
