"""Updates to the working tree, and from it to a release to come, lose nothing of a team's."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.combinations import (
    COMBINATIONS,
    DATABASES,
    SWITCHES,
    Combination,
)
from tests.environments import Environments
from tests.service import Service
from tests.snapshot import read_tree
from tests.update.next_release import ADDED, CHANGED
from tests.update.next_release import DELETED as GONE
from tests.update.repository import TemplateRepository, commit, run_git
from tests.update.team import (
    EDITS,
    EXAMPLE_EDITS,
    change_as_a_team,
    conflicts,
    update,
)
from tests.update.test_just_update import just_update, succeed

MIGRATIONS = "migrations/versions/"


def tree(service: Path) -> dict[str, bytes]:
    """What is in a service besides git's own and the team's migrations."""
    files = read_tree(service)
    return {k: v for k, v in files.items() if not k.startswith((".git/", MIGRATIONS))}


@pytest.mark.parametrize("database", DATABASES)
def test_an_untouched_service_becomes_a_fresh_copy(
    repository: TemplateRepository, tmp_path: Path, database: str
) -> None:
    for old, new in repository.steps:
        # No update switches anything on that nobody has asked for.
        young = {s.question: False for s in SWITCHES if s.question not in repository.questions(old)}
        fresh = repository.render(new, tmp_path / f"fresh-{old}", database=database, **young)
        service = repository.copy(old, tmp_path / old, database=database)
        update(service, new)
        assert tree(service) == tree(fresh), old


def test_the_next_release_changes_adds_and_deletes_files(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    """The other tests would say nothing if there were nothing to update."""
    before = tree(repository.render(repository.head, tmp_path / "before"))
    after = tree(repository.render(repository.next, tmp_path / "after"))
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed >= {*(EDITS.keys() & next_release_renders()), *EXAMPLE_EDITS, "pyproject.toml"}
    assert after.keys() - before.keys() == set(ADDED)
    assert before.keys() - after.keys() == set(GONE)


def next_release_renders() -> set[str]:
    """The files of a service that are made of one that the next release changes."""
    return {name.removeprefix("template/").removesuffix(".jinja") for name in CHANGED}


def test_a_changed_service_passes_its_own_tests_after_the_update(
    repository: TemplateRepository, folder: Path, workers: int, environments: Environments
) -> None:
    """To a release that moves files; one combination, and not the whole suite.

    That runs for every combination in tests/test_combination.py; here it is what the team and the
    release have changed, the migrations, the API's description and the settings.
    """
    changed = repository.copy(repository.head, folder / "updated", database="sqlite")
    change_as_a_team(changed)
    succeed(just_update(changed, "--to", repository.major))
    commit(changed, "Update")
    how = "uv run pytest -n0 tests/update -k own_tests # renders, changes and updates a service"
    service = Service(changed, how, environments)
    service.run(["python", "-m", "devtools.openapi"])
    status = run_git(changed, "status", "--porcelain", "--untracked-files", "--", "*/openapi.json")
    assert status == "?? tests/billing/openapi.json\n", "the API of the others is what it was"
    chosen = "billing or migrations or openapi or env_example or settings or orders or pagination"
    service.run_suite(workers, measured=False, expression=chosen)


def test_the_example_can_be_switched_off_and_on_again(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.head, tmp_path / "service")
    change_as_a_team(service)
    before = tree(service)
    update(service, repository.head, include_example=False)
    assert conflicts(service) == []
    assert not (service / "app" / "orders").exists()
    commit(service, "Do without the example")
    update(service, repository.head, include_example=True)
    assert conflicts(service) == []
    # What the team wrote into the example is in its history; the template's version came back.
    fresh = tree(repository.render(repository.head, tmp_path / "fresh"))
    assert tree(service) == {**before, **{name: fresh[name] for name in EXAMPLE_EDITS}}


@pytest.fixture(scope="session")
def everything_on(repository: TemplateRepository, folder: Path) -> Callable[[str], Path]:
    """A service on a database with every feature, made once; do not change it."""
    words = frozenset(switch.word for switch in SWITCHES)

    @cache
    def get(database: str) -> Path:
        answers = Combination(database, words).answers
        return repository.copy(repository.head, folder / f"all-{database}", **answers)

    return get


@pytest.mark.parametrize("switched", COMBINATIONS, ids=str)
def test_any_combination_of_switches_can_be_reached_by_an_update(
    repository: TemplateRepository,
    everything_on: Callable[[str], Path],
    tmp_path: Path,
    switched: Combination,
) -> None:
    service = shutil.copytree(everything_on(switched.database), tmp_path / "service")
    fresh = repository.render(repository.next, tmp_path / "fresh", **switched.answers)
    update(service, repository.next, **switched.answers)
    assert tree(service) == tree(fresh)


def test_a_deleted_first_revision_does_not_come_back(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.head, tmp_path / "service")
    run_git(service, "rm", "-r", "--quiet", MIGRATIONS)
    commit(service, "Write our own history")
    update(service, repository.next)
    assert not (service / MIGRATIONS).exists()


def test_the_answers_survive_an_update(
    repository: TemplateRepository,
    tmp_path: Path,
    stored_answers: Callable[[Path], dict[str, object]],
) -> None:
    given = {"project_name": "Shop", "project_slug": "my-shop", "author_name": "Zoë O'Neill"}
    service = repository.copy(repository.head, tmp_path / "service", **given)
    before = stored_answers(service)
    update(service, repository.next)
    after = stored_answers(service)
    assert after["_commit"] == repository.next
    assert {**after, "_commit": before["_commit"]} == before
