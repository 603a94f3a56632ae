"""Renders the template through pytest-copie, without trust, and fast enough to do so often."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType
from typing import Any

import copier
import copier._template
import pytest
import pytest_copie.plugin
import yaml
from copier._jinja_ext import SandboxedEnvironment
from copier._main import Worker
from copier._vcs import clone, get_repo
from pytest_copie.plugin import Copie

Answers = Mapping[str, str | bool]
# What only adds files is left out unless a test asks for it, as test_deployment.py does.
WITHOUT_FILES: Answers = {"ci": "none", "deployment": "none"}


def question_names(template: Path) -> set[str]:
    """The names that the template asks for."""
    return set(_question_names((template / "copier.yml").read_text()))


@lru_cache
def _question_names(config: str) -> frozenset[str]:
    computed = {"check_answers"}
    names = {name for name in yaml.safe_load(config) if not name.startswith("_")}
    return frozenset(names - computed)


class Renderer:
    """pytest-copie held to what a user gets: answers as data, no trust, failures raised."""

    def __init__(self, template: Path, folder: Path) -> None:
        """Render `template` into new folders below `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.template = template
        self._copie = Copie(template, folder, folder / "unused")

    def render(self, answers: Answers, *, others: Answers = WITHOUT_FILES) -> Path:
        """Copy the template and answer the folder.

        Args:
            answers: What the test is about.
            others: What else to answer; the rest are the template's defaults.

        Raises:
            ValueError: for an answer to a question that does not exist.
            Exception: whatever stopped Copier.
        """
        if unknown := set(answers) - question_names(self.template):
            raise ValueError(f"the template does not ask for {', '.join(sorted(unknown))}")
        with pytest.MonkeyPatch.context() as patch, fast_copier():
            patch.setattr(pytest_copie.plugin, "run_copy", _copy_as_a_user)
            result = self._copie.copy({**others, **answers})
        if result.exception is not None:
            raise result.exception
        if result.project_dir is None:
            raise RuntimeError("pytest-copie reports neither a project nor an exception")
        return Path(result.project_dir)


def _copy_as_a_user(**arguments: Any) -> Any:
    # pytest-copie passes unsafe=True, which hides a template that wants --trust, and passes the
    # answers as defaults, which are not checked as --data is.
    arguments.pop("unsafe")
    data = arguments.pop("user_defaults")
    return copier.run_copy(**arguments, data=data, unsafe=False, quiet=True)


@contextmanager
def fast_copier() -> Iterator[None]:
    """Take out of Copier what costs most: a git process per file, doing the same thing again.

    Jinja is compiled, `copier.yml` parsed and a release cloned once, and a text without Jinja is
    not rendered: all folders and files of the template have such names.

    These are Copier's internals; tests/test_copier_cli.py renders without this and compares.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Worker, "_sync_git_index_executable_bit", lambda *_: None)
        patch.setattr(Worker, "_render_string", _render_unless_plain)
        patch.setattr(Worker, "answers_relpath", property(_plain_answers_file))
        patch.setattr("copier._template.clone", _clone_once)
        patch.setattr("copier._template.load_template_config", _parse_once)
        patch.setattr(SandboxedEnvironment, "compile", _compile_once)
        patch.setattr("copier._template.get_repo", lru_cache(get_repo))
        yield


_compile = SandboxedEnvironment.compile
_compiled: dict[tuple[object, ...], CodeType] = {}


def _compile_once(self: SandboxedEnvironment, source: Any, *arguments: Any, **named: Any) -> Any:
    # Code depends on the source and the environment's options, which the template sets once for
    # all, and on how it is parsed, which the branch tests change.
    key = (source, arguments, tuple(sorted(named.items())), type(self)._parse)
    if not isinstance(source, str):
        return _compile(self, source, *arguments, **named)
    if key not in _compiled:
        _compiled[key] = _compile(self, source, *arguments, **named)
    return _compiled[key]


_render_string = Worker._render_string
_answers_relpath = Worker.answers_relpath
_load_config = copier._template.load_template_config
_parsed: dict[bytes, dict[str, Any]] = {}


def _render_unless_plain(self: Worker, string: str, extra_context: Any = None) -> str:
    return _render_string(self, string, extra_context) if "{" in string else string


def _plain_answers_file(self: Worker) -> Path:
    path = Path(self.answers_file or self.template.answers_relpath)
    return _answers_relpath.__get__(self) if "{" in str(path) else path


def _parse_once(path: Path, *arguments: Any) -> dict[str, Any]:
    content = path.read_bytes()
    if b"!include" in content:
        return _load_config(path, *arguments)
    if content not in _parsed:
        _parsed[content] = _load_config(path, *arguments)
    return copy.deepcopy(_parsed[content])


_clones: dict[tuple[str, str], TemporaryDirectory[str]] = {}


def _clone_once(url: str, ref: str = "HEAD", location: str | None = None) -> str:
    """Clone a release, of which the tests change neither the tag nor the clone."""
    if ref == "HEAD":
        return clone(url, ref, location)
    if (url, ref) not in _clones:
        folder = TemporaryDirectory(prefix="template-clone-")
        clone(url, ref, folder.name)
        _clones[url, ref] = folder
    return _clones[url, ref].name
