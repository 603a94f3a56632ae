"""Where the template leaves a team room, no update and no switch of a feature is in its way."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.combinations import parse_combination
from tests.environments import Environments
from tests.service import Service, clean_environment
from tests.update.repository import TemplateRepository, commit
from tests.update.seams import ENDS, OWN_FILES, ROLES, write_in_seams
from tests.update.team import conflicts, update
from tests.update.test_features import tree
from tests.update.test_just_update import just_update, succeed

EVERYTHING = "postgresql+redis+arq+jwt+websockets+example"
# Without any feature, and with the roles of users.
STARTS = ("sqlite", "postgresql+jwt")
BEFORE = {"server": "uvicorn", "deployment": "none", "ci": "none"}
CHOICES = {"server": "gunicorn", "deployment": "docker", "ci": "gitlab"}


def steps(start: str) -> list[dict[str, Any]]:
    """What is switched on: each feature that is off, other choices, and all of it together."""
    off = [question for question, on in parse_combination(start).answers.items() if on is False]
    needs = {"use_arq": {"use_redis": True}}
    each = [{question: True, **needs.get(question, {})} for question in off]
    return [*each, CHOICES, {**dict.fromkeys(off, True), **CHOICES}]


def without_roles(service: Path) -> dict[str, bytes]:
    """The tree but for the roles: to add one, a service must have users already."""
    return {name: text for name, text in tree(service).items() if name != ROLES}


def by_copier(service: Path, version: str, answers: dict[str, Any]) -> None:
    update(service, version, **answers)


def by_just_update(service: Path, version: str, answers: dict[str, Any]) -> None:
    data = (f"--data={question}={answer}" for question, answer in answers.items())
    succeed(just_update(service, "--to", version, *data))


@pytest.mark.parametrize(
    ("start", "how"), list(zip(STARTS, (by_copier, by_just_update), strict=True))
)
def test_what_is_switched_on_and_off_leaves_a_teams_own_alone(
    repository: TemplateRepository,
    tmp_path: Path,
    start: str,
    how: Callable[[Path, str, dict[str, Any]], None],
) -> None:
    answers = {**parse_combination(start).answers, **BEFORE}
    service = repository.copy(repository.head, tmp_path / "service", **answers)
    write_in_seams(service)
    before = tree(service)
    for number, step in enumerate(steps(start)):
        how(service, repository.head, step)
        assert conflicts(service) == [], step
        commit(service, f"Switch on {step}")
        fresh = repository.copy(
            repository.head, tmp_path / f"fresh-{number}", **{**answers, **step}
        )
        write_in_seams(fresh)
        assert without_roles(service) == without_roles(fresh), step
        how(service, repository.head, {question: answers[question] for question in step})
        assert conflicts(service) == [], step
        commit(service, f"Switch off {step}")
        assert tree(service) == before, step


@pytest.mark.parametrize("name", ["sqlite", EVERYTHING])
def test_the_next_release_leaves_a_teams_own_alone(
    repository: TemplateRepository, tmp_path: Path, name: str
) -> None:
    answers = parse_combination(name).answers
    service = repository.copy(repository.head, tmp_path / "service", **answers)
    write_in_seams(service)
    update(service, repository.next)
    assert conflicts(service) == []
    commit(service, "Update")
    fresh = repository.copy(repository.next, tmp_path / "fresh", **answers)
    write_in_seams(fresh)
    assert tree(service) == tree(fresh)


def test_no_release_changes_what_teams_write_in(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    """Neither a file of their own, nor the line of a file after which they append."""
    found: dict[str, set[bytes]] = {}
    new = {repository.head, repository.next}
    ends = {"sqlite": {repository.releases[-1], *new}, EVERYTHING: new}
    for version in (*repository.releases, repository.head, repository.next):
        for name in ("sqlite", EVERYTHING):
            known = parse_combination(name).answers
            if version in repository.releases:
                known = {k: v for k, v in known.items() if k in repository.questions(version)}
            service = repository.render(version, tmp_path / f"{version}-{name}", **known)
            for own in filter(Path.exists, (service / path for path in OWN_FILES)):
                found.setdefault(own.name, set()).add(own.read_bytes())
            # In 1.5.0 the end of one of them depended on the example.
            if version in ends[name]:
                for end in ENDS:
                    line = (service / end).read_bytes().splitlines()[-1]
                    found.setdefault(f"the end of {end}", set()).add(line)
    assert len(found) == len(OWN_FILES) + len(ENDS)
    assert {name: texts for name, texts in found.items() if len(texts) > 1} == {}


def test_uv_adds_dependencies_where_a_teams_own_are(
    repository: TemplateRepository, tmp_path: Path
) -> None:
    service = repository.render(repository.head, tmp_path / "service", database="sqlite")
    project = service / "pyproject.toml"
    before = project.read_text().splitlines()
    for arguments in (["aiofiles>=24", "zict>=3"], ["--dev", "zipp>=3", "attrs>=25"]):
        command = [os.environ.get("UV", "uv"), "add", "--frozen", "--quiet", *arguments]
        subprocess.run(command, cwd=service, env=clean_environment(), check=True)
    after = project.read_text().splitlines()
    marks = [number for number, line in enumerate(before) if "# Your own, below" in line]
    expected = [
        *before[: marks[0] + 1],
        '  "aiofiles>=24",',
        '  "zict>=3",',
        *before[marks[0] + 1 : marks[1] + 1],
        '  "attrs>=25",',
        '  "zipp>=3",',
        *before[marks[1] + 1 :],
    ]
    assert after == expected


def test_a_service_passes_its_tests_with_a_teams_own(
    repository: TemplateRepository, folder: Path, workers: int, environments: Environments
) -> None:
    """In one combination, which has users, and what depends on what the team has written."""
    answers = parse_combination("sqlite+jwt").answers
    written = repository.copy(repository.head, folder / "seams", **answers)
    write_in_seams(written)
    how = "uv run pytest -n0 tests/update -k with_a_teams_own # renders and changes a service"
    service = Service(written, how, environments)
    uv = {"UV": os.environ.get("UV", "uv")}
    assert service.run(["just", "slip"], extra=uv).endswith("slip\n")
    service.run(["just", "migration", "Librarians"], extra=uv)
    revisions = [path.read_text() for path in (written / "migrations" / "versions").glob("*.py")]
    assert any("librarian" in text for text in revisions), "the role is in no CHECK constraint"
    service.run(["just", "openapi"], extra=uv)
    for command in (["ruff", "format", "--check"], ["ruff", "check"], ["deptry", "."]):
        service.run(command)
    service.run(["lint-imports", "--no-logo"])
    service.check_types()
    chosen = "lending or settings or env_example or lifespan or migrations or openapi or security"
    service.run_suite(workers, measured=False, expression=f"{chosen} or admin")
