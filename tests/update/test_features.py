"""Features are switched on in a service of the first release, and off again, by its team.

What each step proves, beside that no line of the team's is lost and nothing conflicts:

- the update: the service is what a fresh copy of the new release becomes when the team changes it
  (tests/update/test_update.py has this for every release). That the team's tests pass in it is
  part of the last step, which brings back the same tree;
- a feature switched on: the service is what a fresh copy with it would be; `just migration` writes
  what its tables need on top of the team's own revisions, `just openapi` its routes. The tests of
  the migrations, of the API's description and of the team pass. What else a combination must do
  does not depend on how it was reached, and is tested in tests/test_combination.py;
- everything on: the whole suite passes in a service of a team;
- switched off: every file is what it was before, and the tests above pass with the migrations of
  the features left behind.
"""

import os
from pathlib import Path

from tests.environments import Environments
from tests.service import Service
from tests.snapshot import read_tree
from tests.update.repository import TemplateRepository, commit, run_git
from tests.update.team import change_as_a_team, conflicts, update

# What is switched together, in the order of their releases.
FEATURES = (("use_redis", "use_arq"), ("use_jwt",), ("use_websockets",))
# What depends on how a service came to be what it is.
OWN_HISTORY = ("tests/billing", "tests/migrations", "tests/test_openapi.py")
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

    def __init__(
        self, folder: Path, written: dict[str, list[str]], environments: Environments
    ) -> None:
        """Own the service in `folder`, in which `written` is the team's, by file."""
        self.folder = folder
        self._written = written
        self._environments = environments

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
        self.service.run(["just", *arguments], extra={"UV": os.environ.get("UV", "uv")})
        commit(self.folder, f"just {arguments[0]}")

    @property
    def service(self) -> Service:
        """The service as it is now, with what it declares now."""
        how = "uv run pytest -n0 tests/update/test_features.py # switches, and runs"
        return Service(self.folder, how, self._environments)


def test_features_are_switched_on_and_off_again(
    repository: TemplateRepository, folder: Path, environments: Environments, workers: int
) -> None:
    old = release_before(repository, FEATURES[0][0])
    folder_of_service = repository.copy(old, folder / "switching")
    team = Team(folder_of_service, change_as_a_team(folder_of_service), environments)

    team.update(repository.head, "Update")
    team.just("openapi")
    off = tree(team.folder)

    answers = {question: False for questions in FEATURES for question in questions}
    for number, questions in enumerate(FEATURES):
        before = tree(team.folder).keys()
        switched = dict.fromkeys(questions, True)
        answers |= switched
        team.update(repository.head, f"Switch on {questions}", **switched)
        assert tree(team.folder).keys() - before, "the feature has no files"
        fresh = repository.copy(repository.head, folder / f"switched-{number}", **answers)
        change_as_a_team(fresh)
        assert without_descriptions(team.folder) == without_descriptions(fresh)
        team.just("migration", f"Tables of {questions[-1]}")
        # A guard shows in the description of the team's own routes.
        team.just("openapi")
        if all(answers.values()):
            team.service.run_suite(workers, measured=False)
        else:
            team.service.run_suite(workers, *OWN_HISTORY, measured=False)

    team.update(repository.head, "Switch off", **dict.fromkeys(answers, False))
    team.just("openapi")
    assert tree(team.folder) == off
    team.service.run_suite(workers, *OWN_HISTORY, measured=False)


def without_descriptions(service: Path) -> dict[str, bytes]:
    """The tree without the snapshots of the team's own API, which `just openapi` writes later."""
    return {k: v for k, v in tree(service).items() if not k.startswith("tests/billing/")}
