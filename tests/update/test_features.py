"""A feature is switched on in a service of an older release, and off again, by its team."""

import os
from pathlib import Path

import pytest

from tests.service import Service
from tests.snapshot import read_tree
from tests.update.repository import TemplateRepository, commit, run_git
from tests.update.team import change_as_a_team, conflicts, update

# What is switched together, by the words of the features, in the order of their releases.
FEATURES = {
    "redis+arq": ("use_redis", "use_arq"),
    "jwt": ("use_jwt",),
    "websockets": ("use_websockets",),
}
MIGRATIONS = "migrations/versions/"


def release_before(repository: TemplateRepository, question: str) -> str:
    """The newest release that did not ask the question."""
    without = [each for each in repository.releases if question not in repository.questions(each)]
    return without[-1]


def tree(service: Path) -> dict[str, bytes]:
    """What git tracks, without the migrations, which no update touches, and uv's lock.

    The lock remembers how it came about: to the same requirements there are several.
    """
    tracked = run_git(service, "ls-files", "-z").split("\0")
    return {
        name: content
        for name, content in read_tree(service).items()
        if name in tracked and not name.startswith((MIGRATIONS, "uv.lock"))
    }


class Team:
    """Who owns the service: updates it, commits, and expects `just check`'s tests to pass."""

    def __init__(self, folder: Path, written: dict[str, list[str]], workers: int) -> None:
        """Own the service in `folder`, in which `written` is the team's, by file."""
        self.folder = folder
        self._written = written
        self._workers = workers

    def update(self, version: str, message: str, **answers: bool) -> None:
        """Update, look for what must not happen, and commit."""
        update(self.folder, version, **answers)
        assert conflicts(self.folder) == [], message
        for path, lines in self._written.items():
            kept = (self.folder / path).read_text().splitlines()
            assert [line for line in lines if line not in kept] == [], f"{message}: {path}"
        commit(self.folder, message)

    def just(self, *arguments: str) -> None:
        """Run a recipe with what the service now needs, and commit what it wrote."""
        service = self._service()
        service.run(["just", *arguments], extra={"UV": os.environ.get("UV", "uv")})
        commit(self.folder, f"just {arguments[0]}")

    def test(self) -> None:
        """Run the whole suite."""
        self._service().run_suite(self._workers, measured=False)

    def _service(self) -> Service:
        # A new one installs what the update has changed.
        return Service(
            self.folder, "uv run pytest -n0 tests/update/test_features.py # switches, and runs"
        )


@pytest.mark.first
@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_is_switched_on_and_off_again(
    repository: TemplateRepository, folder: Path, workers: int, name: str
) -> None:
    questions = FEATURES[name]
    old = release_before(repository, questions[0])
    service = repository.copy(old, folder / f"switching-{name}")
    team = Team(service, change_as_a_team(service), workers)

    team.update(repository.head, "Update")
    team.just("openapi")
    team.test()
    off = tree(service)

    team.update(repository.head, "Switch on", **dict.fromkeys(questions, True))
    assert tree(service).keys() - off.keys(), "the feature has no files"
    team.just("migration", f"Tables of {name}")
    # A guard shows in the description of the team's own routes.
    team.just("openapi")
    team.test()

    team.update(repository.head, "Switch off", **dict.fromkeys(questions, False))
    team.just("openapi")
    assert tree(service) == off
    team.test()
