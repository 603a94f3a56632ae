"""The real `copier` command, without trust and without the harness's patches, as a user runs it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.combinations import COMBINATIONS
from tests.rendering import WITHOUT_FILES, Renderer
from tests.service import clean_environment
from tests.snapshot import read_tree
from tests.update.repository import TemplateRepository, commit, run_git

ANSWERS = ".copier-answers.yml"


def run_copier(
    *arguments: str | Path, folder: Path, extra: Mapping[str, str] | None = None, umask: int = 0o022
) -> subprocess.CompletedProcess[str]:
    executable = Path(sys.executable).with_name("copier")
    return subprocess.run(
        [executable, *arguments],
        cwd=folder,
        env=clean_environment(extra),
        umask=umask,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """What was rendered, without git's own and what names where the template is."""
    return {
        k: v for k, v in read_tree(folder).items() if k != ANSWERS and not k.startswith(".git/")
    }


def test_it_renders_what_the_harness_renders(
    repository: TemplateRepository, renderer: Renderer, tmp_path: Path
) -> None:
    answers = {**WITHOUT_FILES, **COMBINATIONS[1].answers}
    data = [part for k, v in answers.items() for part in ("--data", f"{k}={str(v).lower()}")]
    service = tmp_path / "service"
    options = ["--defaults", "--vcs-ref", repository.head, *data]
    result = run_copier("copy", *options, repository.folder, service, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert contents(service) == contents(renderer.render(answers))
    # The next two commands, after git.
    assert "git init" in result.stderr
    assert "uv run just dev" in result.stderr
    assert "uv run just check" in result.stderr


def test_it_renders_the_same_on_any_machine(
    repository: TemplateRepository, renderer: Renderer, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    elsewhere = tmp_path / "else where"
    for made in (home, elsewhere):
        made.mkdir()
    (home / ".gitconfig").write_text(
        "[core]\n\tautocrlf = input\n\tfileMode = false\n[init]\n\tdefaultBranch = trunk\n"
    )
    extra = {"HOME": str(home), "LC_ALL": "C", "TZ": "Pacific/Auckland", "PYTHONHASHSEED": "7"}
    service = elsewhere / "sérvice"
    options = ["--defaults", "--vcs-ref", repository.head]
    result = run_copier(
        "copy", *options, repository.folder, service, folder=elsewhere, extra=extra, umask=0o077
    )
    assert result.returncode == 0, result.stderr
    assert contents(service) == contents(renderer.render({}, others={}))


def test_it_updates_without_trust_and_says_where_to_look(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.head, tmp_path / "service")
    # Without a version it goes to the latest release.
    result = run_copier("update", "--defaults", folder=service)
    assert result.returncode == 0, result.stderr
    assert "git ls-files --unmerged" in result.stderr
    assert "git diff --diff-filter=D" in result.stderr
    fresh = repository.copy(repository.major, tmp_path / "fresh")
    without_history = {k: v for k, v in contents(fresh).items() if "migrations/versions" not in k}
    updated = {k: v for k, v in contents(service).items() if "migrations/versions" not in k}
    assert updated == without_history


def test_a_data_file_with_a_wrong_answer_is_refused_in_one_line(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.yml"
    answers.write_text("project_slug: My Shop\n")
    result = run_copier(
        "copy", "--defaults", "--data-file", answers, repository.folder, "out", folder=tmp_path
    )
    assert result.returncode == 1
    line, stopped = result.stderr.splitlines()
    assert line.startswith("project_slug: use small letters")
    assert "parameter 'valid_answer' was not provided" in stopped
    assert not (tmp_path / "out").exists()


def test_a_template_that_wants_trust_would_be_noticed(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    """The check of the check: with a task in it, the same copy fails."""
    greedy = tmp_path / "greedy"
    shutil.copytree(repository.folder, greedy, ignore=shutil.ignore_patterns(".git"))
    with (greedy / "copier.yml").open("a") as config:
        config.write(f"_tasks: ['{os.devnull}']\n")
    run_git(greedy, "init", "--quiet")
    commit(greedy, "Want trust")
    result = run_copier("copy", "--defaults", greedy, "out", folder=tmp_path)
    assert result.returncode == 4, result.stderr
