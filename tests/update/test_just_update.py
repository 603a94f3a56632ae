"""`just update` of services of every release, with what their teams have written in them."""

import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.combinations import COMBINATIONS, Combination, parse_combination
from tests.environments import Environments, locked
from tests.service import Service, clean_environment
from tests.snapshot import ROOT, read_tree
from tests.update.repository import TemplateRepository, commit, run_git
from tests.update.team import DELETED, change_as_a_team, conflicts
from tests.update.test_features import tree

TABLE = ROOT / "docs" / "reference" / "updates.md"
FAST_COPIER = shlex.join([sys.executable, str(Path(__file__).parent / "inside" / "fast_copier.py")])
# Every two answers stand together in one of them; the releases share them out.
PAIRWISE = (
    "postgresql+redis+arq+jwt+websockets+example",
    "sqlite+example",
    "postgresql+jwt",
    "sqlite+redis+jwt+websockets",
    "postgresql+websockets",
    "sqlite+redis+arq",
)

Just = Callable[..., subprocess.CompletedProcess[str]]


def just_update(
    service: Path,
    *arguments: str,
    newest: bool = False,
    extra: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """What the recipe runs, with the Copier of the harness.

    Args:
        service: Its folder.
        arguments: The recipe's.
        newest: Whether with the working tree's engine instead of the service's own.
        extra: More environment variables.
    """
    own = {"COPIER": FAST_COPIER, "PYTHONDONTWRITEBYTECODE": "1", **(extra or {})}
    if newest:
        own["PYTHONPATH"] = str(ROOT / "template")
    return subprocess.run(
        [sys.executable, *(["-P"] if newest else []), "-m", "devtools.update", *arguments],
        cwd=service,
        env=clean_environment(own),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout
    return result.stdout


def test_every_two_answers_stand_together_somewhere() -> None:
    def pairs(combination: Combination) -> set[tuple[object, ...]]:
        return set(itertools.combinations(combination.answers.items(), 2))

    every = set[tuple[object, ...]]().union(*map(pairs, COMBINATIONS))
    assert (
        set[tuple[object, ...]]().union(*(pairs(parse_combination(n)) for n in PAIRWISE)) == every
    )


class Outcome:
    """What an update of a team's service came to."""

    def __init__(self, service: Path, written: Mapping[str, list[str]], fresh: Path) -> None:
        """Compare it with a fresh copy in which the team has written the same."""
        self.conflicts = conflicts(service)
        self.lost = [
            f"{path}: {line}"
            for path, lines in written.items()
            for line in lines
            if line not in (service / path).read_text().splitlines()
        ]
        run_git(service, "add", "--all")
        commit(service, "Update")
        after, expected = tree(service), tree(fresh)
        self.different = sorted(
            name for name in {*after, *expected} if after.get(name) != expected.get(name)
        )

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many of each kind, as the table has them."""
        return len(self.conflicts), len(self.lost), len(self.different)


@pytest.mark.parametrize("name", PAIRWISE)
def test_no_release_loses_a_line_on_its_way(
    repository: TemplateRepository, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    """To this release, then to one that moves files, as docs/reference/updates.md says."""
    releases = (*repository.releases, repository.head)
    for release in releases[PAIRWISE.index(name) :: len(PAIRWISE)]:
        folder = tmp_path / release
        outcomes = take_through(repository, release, parse_combination(name), folder)
        label = "this release" if release == repository.head else release
        counts = [" / ".join(map(str, outcome.counts)) if outcome else "" for outcome in outcomes]
        row = f"| {label} | `{name}` | {' | '.join(counts)} |"
        if request.config.getoption("--snapshot-update"):
            with locked(tmp_path.parent / "table"):
                replace_row(f"| {label} |", row)
        for outcome in filter(None, outcomes):
            found = (outcome.conflicts, outcome.lost, outcome.different)
            assert found == ([], [], []), f"{release}, {name}"
        assert row in TABLE.read_text().splitlines(), "run `uv run just snapshots`"


def replace_row(start: str, row: str) -> None:
    lines = TABLE.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| from ")]
    kept = [line for line in rows if not line.startswith(start)]
    others = [line for line in lines if line not in rows]
    # Releases in their order, and at the end the one that is being made.
    table = "\n".join(sorted([*kept, row], key=lambda line: (line.startswith("| this"), line)))
    text = "\n".join(others)
    TABLE.write_text(
        text.replace("|---|---|---|---|---|", f"|---|---|---|---|---|\n{table}") + "\n"
    )


def take_through(
    repository: TemplateRepository, release: str, combination: Combination, folder: Path
) -> tuple[Outcome | None, Outcome | None, Outcome]:
    """Update a team's service of a release by its own script, by the newest one, and to a major."""
    known = repository.questions(release)
    answers = {k: v for k, v in combination.answers.items() if k in known}
    # What an older release does not know is off, until somebody asks for it.
    full = {k: v if k in known else False for k, v in combination.answers.items()}
    service = repository.copy(release, folder / "service", **answers)
    written = change_as_a_team(service)
    by_its_own = by_the_newest = None
    if release != repository.head:
        other = shutil.copytree(service, folder / "other", symlinks=True)
        fresh = repository.copy(repository.head, folder / "fresh", **full)
        change_as_a_team(fresh)
        succeed(just_update(service, f"--vcs-ref={repository.head}"))
        by_its_own = Outcome(service, written, fresh)
        succeed(just_update(other, "--to", repository.head, newest=True))
        by_the_newest = Outcome(other, written, fresh)
    before = read_tree(service)
    succeed(just_update(service, "--preview", "--to", repository.major))
    assert read_tree(service) == before, "a preview touches nothing, not even git's files"
    succeed(just_update(service, "--to", repository.major))
    moved = repository.copy(repository.major, folder / "moved", **full)
    expected = change_as_a_team(moved, major=True)
    outcome = Outcome(service, expected, moved)
    assert not (service / DELETED).exists()
    assert "nothing newer" in succeed(just_update(service))
    assert run_git(service, "status", "--porcelain") == ""
    return by_its_own, by_the_newest, outcome


@pytest.fixture
def service(repository: TemplateRepository, tmp_path: Path) -> Path:
    return repository.copy(repository.head, tmp_path / "service", database="sqlite")


@pytest.fixture
def just(environments: Environments, service: Path) -> Just:
    """Runs a recipe in the service, as its team would: by `uv run just`."""
    installed = Service(service, "uv run just render ../service", environments)
    environment = installed.environ({"COPIER": FAST_COPIER})

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["uv", "run", "just", *arguments],
            cwd=service,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )

    return run


def test_arguments_arrive_as_they_were_given(just: Just, service: Path) -> None:
    given = ("--data", "project_name=New Name", "--data=description=Fast & touch pwned; $(touch x)")
    succeed(just("update", *given))
    answers = (service / ".copier-answers.yml").read_text()
    assert "\nproject_name: New Name\n" in answers
    assert "\ndescription: Fast & touch pwned; $(touch x)\n" in answers
    assert not (service / "pwned").exists()
    assert not (service / "x").exists()
    chosen = ("-k", "pagination or openapi", "--collect-only", "-q", "-n0")
    assert "::test_" in succeed(just("test", *chosen))


def test_a_conflict_is_told_by_the_recipe_and_can_be_taken_back(
    just: Just, service: Path, repository: TemplateRepository
) -> None:
    pyproject = service / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace("fail_under = 95", "fail_under = 96"))
    commit(service, "Be strict")
    before = read_tree_without_git(service)
    result = just("update", "--to", repository.next)
    assert result.returncode == 1, result.stdout
    assert "  - pyproject.toml\n" in result.stdout
    assert "`python3 -m devtools.update --abort`" in result.stdout
    assert "pyproject.toml" in run_git(service, "ls-files", "-u")
    # uv cannot read such a file.
    assert "Failed to parse" in just("--list").stdout
    succeed(just_update(service, "--abort"))
    assert read_tree_without_git(service) == before


def read_tree_without_git(service: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in read_tree(service).items()
        if not name.startswith(".git/") and "__pycache__" not in name
    }


def test_a_refused_answer_is_told_in_plain_words(service: Path) -> None:
    before = read_tree_without_git(service)
    result = just_update(service, "--data", "use_arq=true")
    assert result.returncode == 2
    assert result.stdout == "use_arq: needs use_redis; answer use_redis=true, or use_arq=false\n"
    unknown = just_update(service, "--data", "use_nothing=true")
    assert unknown.stdout.startswith("use_nothing: is not a question of this template;")
    assert read_tree_without_git(service) == before


def test_a_relative_source_is_found_from_anywhere(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    command = [*shlex.split(FAST_COPIER), "copy", "--defaults", "--quiet", "--data=database=sqlite"]
    source = os.path.relpath(repository.folder, tmp_path)
    subprocess.run(
        [*command, f"--vcs-ref={repository.head}", source, "service"], cwd=tmp_path, check=True
    )
    service = tmp_path / "service"
    run_git(service, "init", "--quiet")
    commit(service, "Start")
    assert f"_src_path: {repository.folder}\n" in (service / ".copier-answers.yml").read_text()
    assert f"newer than {repository.head}" in just_update(service, "--check").stdout


def test_new_questions_are_asked_in_a_terminal(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    [*_, old] = [each for each in repository.releases if "server" not in repository.questions(each)]
    service = repository.copy(old, tmp_path / "service", database="sqlite")
    environment = clean_environment(
        {"COPIER": FAST_COPIER, "PYTHONPATH": str(ROOT / "template"), "TERM": "xterm"}
    )
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "devtools.update", "--to", repository.head],
        cwd=service,
        env=environment,
        stdin=theirs,
        stdout=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    # The second choice of the first question, then whatever is chosen already.
    keys = [b"\x1b[B\r"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(ours, 4096)
        except OSError:
            break
        if b"\x1b[6n" in shown:
            os.write(ours, b"\x1b[1;1R")
        if shown.count(b"?") > len(keys) - 1:
            os.write(ours, keys[-1])
            keys.append(b"\r")
    os.close(ours)
    assert process.wait(30) == 0, shown
    assert b"Which server runs it?" in shown
    assert b"What is the service called?" not in shown
    assert "server: gunicorn" in (service / ".copier-answers.yml").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_it_renders_changes_nothing(
    repository: TemplateRepository, service: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = read_tree_without_git(service)
    started = tmp_path / "started"
    script = tmp_path / "copier"
    script.write_text(f"#!/bin/sh\ntouch {started}\nexec sleep 60\n")
    script.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "devtools.update", "--to", repository.next],
        cwd=service,
        env=clean_environment({"COPIER": str(script), "PYTHONDONTWRITEBYTECODE": "1"}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    # As a terminal does, to all of them.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert output == b""
    assert read_tree_without_git(service) == before
    assert run_git(service, "status", "--porcelain") == ""


def test_a_preview_in_a_hook_of_git_leaves_its_index_alone(
    repository: TemplateRepository, service: Path
) -> None:
    """Git gives its hooks the path of an index, which Copier's own git would use as well."""
    index = service / ".git" / "index"
    before = index.read_bytes()
    extra = {"GIT_INDEX_FILE": str(index)}
    succeed(just_update(service, "--preview", "--to", repository.next, extra=extra))
    assert index.read_bytes() == before
