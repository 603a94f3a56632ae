"""Every release can be updated to the working tree, and nothing that a team wrote is lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.combinations import COMBINATIONS, Combination, parse_combination
from tests.service import Service
from tests.snapshot import read_tree
from tests.update.repository import TemplateRepository, commit, run_git
from tests.update.team import DELETED, change_as_a_team, conflicts, update

MIGRATIONS = "migrations/versions/"


def tree(service: Path) -> dict[str, bytes]:
    """What is in a service besides git's own and the team's migrations."""
    files = read_tree(service)
    return {k: v for k, v in files.items() if not k.startswith((".git/", MIGRATIONS))}


@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_an_untouched_service_becomes_a_fresh_copy(
    repository: TemplateRepository, tmp_path: Path, database: str
) -> None:
    fresh = repository.copy(repository.head, tmp_path / "fresh", database=database)
    for release in repository.releases:
        service = repository.copy(release, tmp_path / release, database=database)
        update(service)
        assert tree(service) == tree(fresh), release


def test_a_changed_service_keeps_every_line_of_its_team(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    for release in repository.releases:
        service = repository.copy(release, tmp_path / release)
        written = change_as_a_team(service)
        before = read_tree(service)
        update(service)
        assert conflicts(service) == [], release
        for name, lines in written.items():
            kept = (service / name).read_text().splitlines()
            assert [line for line in lines if line not in kept] == [], f"{release}: {name}"
        after = read_tree(service)
        own = ("app/billing/", "tests/billing/", MIGRATIONS)
        assert {k: v for k, v in after.items() if k.startswith(own)} == {
            k: v for k, v in before.items() if k.startswith(own)
        }, release
        assert not (service / DELETED).exists(), release


def test_a_changed_service_passes_its_own_tests_after_the_update(
    repository: TemplateRepository, folder: Path, workers: int
) -> None:
    for release in repository.releases:
        service = repository.copy(release, folder / f"updated-{release}")
        change_as_a_team(service)
        update(service)
        how = "uv run pytest -n0 tests/update -k own_tests # renders, changes and updates a service"
        assert Service(service, how).run_suite(workers).passed


def test_the_example_can_be_switched_off_and_on_again(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.head, tmp_path / "service")
    change_as_a_team(service)
    before = tree(service)
    update(service, include_example=False)
    assert conflicts(service) == []
    assert not (service / "app" / "orders").exists()
    commit(service, "Do without the example")
    update(service, include_example=True)
    assert conflicts(service) == []
    assert tree(service) == before


@pytest.mark.parametrize("switched", COMBINATIONS, ids=str)
def test_any_combination_can_be_reached_by_an_update(
    repository: TemplateRepository, tmp_path: Path, switched: Combination
) -> None:
    start = parse_combination("postgresql+example")
    service = repository.copy(repository.head, tmp_path / "service", **start.answers)
    fresh = repository.copy(repository.head, tmp_path / "fresh", **switched.answers)
    update(service, **switched.answers)
    assert tree(service) == tree(fresh)


def test_a_deleted_first_revision_does_not_come_back(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.releases[0], tmp_path / "service")
    run_git(service, "rm", "-r", "--quiet", MIGRATIONS)
    commit(service, "Write our own history")
    update(service)
    assert not (service / MIGRATIONS).exists()


def test_the_answers_survive_an_update(
    repository: TemplateRepository,
    tmp_path: Path,
    stored_answers: Callable[[Path], dict[str, object]],
) -> None:
    given = {"project_name": "Shop", "project_slug": "my-shop", "author_name": "Zoë O'Neill"}
    service = repository.copy(repository.releases[0], tmp_path / "service", **given)
    before = stored_answers(service)
    update(service)
    after = stored_answers(service)
    assert after["_commit"] == repository.head
    assert {**after, "_commit": before["_commit"]} == before
