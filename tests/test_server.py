"""What `server` changes: files, dependencies and commands; and the server that it brings."""

import re
from pathlib import Path

import pytest

from tests.combinations import Combination, parse_combination
from tests.environments import Environments
from tests.rendering import Renderer
from tests.service import Service, render_command
from tests.snapshot import read_tree

# Every conditional line goes both ways.
NAMES = ("sqlite", "postgresql+websockets+example", "postgresql+redis+arq+jwt+websockets+example")
SCENARIO = Path(__file__).parent / "inside" / "gunicorn_workers.py"
CHANGED = {".copier-answers.yml", "README.md", "devtools/serve.just", "pyproject.toml"}
DEPLOYED = {".dockerignore", "deploy/Dockerfile"}

Rendered = tuple[Combination, Path, Path]


@pytest.fixture(scope="module", params=NAMES)
def rendered(request: pytest.FixtureRequest, renderer: Renderer) -> Rendered:
    combination = parse_combination(request.param)
    answers = {**combination.answers, "deployment": "docker"}
    with_uvicorn = renderer.render({**answers, "server": "uvicorn"})
    return combination, with_uvicorn, renderer.render({**answers, "server": "gunicorn"})


def test_it_changes_no_module(rendered: Rendered) -> None:
    _, with_uvicorn, folder = rendered
    before, after = read_tree(with_uvicorn), read_tree(folder)
    assert after.keys() - before.keys() == {"gunicorn.conf.py"}
    assert before.keys() <= after.keys()
    assert {name for name in before if before[name] != after[name]} == CHANGED | DEPLOYED


def test_uvicorn_leaves_no_trace_of_gunicorn(rendered: Rendered) -> None:
    _, with_uvicorn, _ = rendered
    for name, text in read_tree(with_uvicorn).items():
        # The answers name it; that is how it can be had.
        assert b"gunicorn" not in text, name


def test_one_command_serves_everywhere(rendered: Rendered) -> None:
    for folder in rendered[1:]:
        [image] = re.findall(r"^CMD \[(.*)\]$", (folder / "deploy/Dockerfile").read_text(), re.M)
        command = image.replace('"', "").replace(",", "")
        recipe = (folder / "devtools/serve.just").read_text()
        assert f'run {command} "$@"' in recipe
        assert f"uv run --no-dev {command}\n" in (folder / "README.md").read_text()


@pytest.fixture(scope="module")
def service(rendered: Rendered, environments: Environments) -> Service:
    combination, _, folder = rendered
    return Service(folder, render_command(combination), environments)


def test_its_configuration_passes_the_checks(service: Service) -> None:
    service.run(["ruff", "check", "gunicorn.conf.py"])
    service.run(["ruff", "format", "--check", "gunicorn.conf.py"])
    service.run(["deptry", "."])


@pytest.mark.parametrize("rendered", NAMES[1:], indirect=True)
def test_workers_are_bounded_replaced_and_counted(service: Service) -> None:
    """With PostgreSQL: SQLite is for one process, so that there is one worker."""
    service.run_inside(SCENARIO)
