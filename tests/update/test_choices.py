"""What a service is run with is chosen anew: nothing of the former choice stays."""

from itertools import pairwise
from pathlib import Path

import pytest
import yaml

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
    data = (f"--data={name}={word}" for name, word in choose(2).items())
    result = just_update(service, "--to", repository.next, *data)
    assert result.returncode == 0, result.stdout + result.stderr
    commit(service, "Choose")
    fresh = repository.copy(repository.next, tmp_path / "fresh", **choose(2))
    assert tree(service) == tree(fresh)


@pytest.mark.parametrize("which", [0, -1])
def test_an_older_service_gets_no_files_and_can_have_them(
    repository: TemplateRepository, tmp_path: Path, which: int
) -> None:
    """From the first release and from the last one that did not ask."""
    old = [each for each in repository.releases if not CHOICES.keys() & repository.questions(each)]
    everything = repository.render(repository.head, tmp_path / "everything", **choose(2))
    nothing = repository.render(repository.head, tmp_path / "nothing", **choose(0))
    own = {
        path.relative_to(everything)
        for path in everything.rglob("*")
        if path.is_file() and not (nothing / path.relative_to(everything)).exists()
    }
    service = repository.copy(old[which], tmp_path / "service")
    update(service, repository.head)
    answers = yaml.safe_load((service / ".copier-answers.yml").read_text())
    assert {question: answers[question] for question in CHOICES} == choose(0)
    assert [path for path in own if (service / path).exists()] == []
    commit(service, "Update")
    update(service, repository.head, **{**choose(1), "deployment": "kubernetes"})
    assert conflicts(service) == []
    for brought in ("gunicorn.conf.py", "deploy/kubernetes/base", ".github/workflows"):
        assert (service / brought).exists()
