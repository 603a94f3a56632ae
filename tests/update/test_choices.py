"""What a service is run with is chosen anew: nothing of the former choice stays."""

from itertools import pairwise
from pathlib import Path

from tests.update.repository import TemplateRepository, commit
from tests.update.team import change_as_a_team, conflicts, update
from tests.update.test_features import tree
from tests.update.test_just_update import just_update

CHOICES = {
    "server": ("uvicorn", "gunicorn"),
    "deployment": ("none", "docker", "kubernetes"),
    "ci": ("none", "github", "gitlab"),
}
# Indexes into the choices, so that each comes after each other one of its question.
WALK = (0, 1, 2, 0, 2, 1, 0)


def choose(index: int) -> dict[str, str]:
    return {question: words[index % len(words)] for question, words in CHOICES.items()}


def test_the_walk_has_every_change() -> None:
    for question, words in CHOICES.items():
        chosen = [choose(index)[question] for index in WALK]
        changes = {(old, new) for old, new in pairwise(chosen) if old != new}
        assert len(changes) == len(words) * (len(words) - 1)


def test_nothing_stays_of_what_was_chosen_before(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    features = {"use_redis": True, "use_arq": True, "use_jwt": True}
    service = repository.copy(repository.head, tmp_path / "service", **features, **choose(0))
    change_as_a_team(service)
    for number, index in enumerate(WALK[1:]):
        update(service, repository.head, **choose(index))
        assert conflicts(service) == []
        commit(service, f"Choose {choose(index)}")
        fresh = repository.copy(
            repository.head, tmp_path / f"fresh-{number}", **features, **choose(index)
        )
        change_as_a_team(fresh)
        assert tree(service) == tree(fresh)


def test_just_update_changes_all_three_at_once(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.copy(repository.head, tmp_path / "service", **choose(1))
    result = just_update(service, *(f"--data={name}={word}" for name, word in choose(2).items()))
    assert result.returncode == 0, result.stdout + result.stderr
    commit(service, "Choose")
    fresh = repository.copy(repository.next, tmp_path / "fresh", **choose(2))
    assert tree(service) == tree(fresh)
