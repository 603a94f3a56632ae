"""What `just` runs in a service is no team's own: its tests are here, and run in a render."""

import shutil
from pathlib import Path

import pytest

from tests.combinations import parse_combination
from tests.environments import Environments
from tests.rendering import Renderer
from tests.service import Service, render_command

TESTS = Path(__file__).parent / "devtools"
# By combination: everything there is, and the places where `devtools/dev.py` has something else
# or nothing to start.
CHOSEN = {
    "postgresql+redis+arq+jwt+websockets+example": "test_*.py",
    "postgresql": "test_dev.py",
    "sqlite+redis+arq+jwt": "test_dev.py",
    "sqlite": "test_dev.py",
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_tools_of_a_service_do_what_they_say(
    name: str, renderer: Renderer, environments: Environments, workers: int
) -> None:
    combination = parse_combination(name)
    how = f"{render_command(combination)} && cp -r tests/devtools ../service/tests/"
    # One of its own: what is added is in no service that is tested elsewhere.
    service = Service(renderer.render(combination.answers), how, environments)
    folder = service.folder / "tests" / "devtools"
    folder.mkdir()
    for test in TESTS.glob(CHOSEN[name]):
        shutil.copy(test, folder)
    shown = folder.relative_to(service.folder).as_posix()
    service.run(["ruff", "format", "--check", shown])
    service.run(["ruff", "check", shown])
    service.check_types()
    service.run_suite(workers, shown, measured=False)
