"""nginx is no Python package: where the machine has it, all processes are replaced behind it."""

import os
import shutil
from pathlib import Path

import pytest

from tests.combinations import parse_combination
from tests.environments import Environments
from tests.rendering import Renderer
from tests.service import Service

BEHIND = "postgresql+redis+arq+websockets+example"
SCENARIO = Path(__file__).parent / "inside" / "rolling.py"


@pytest.mark.parametrize("server", ["uvicorn", "gunicorn"])
def test_nothing_is_lost_while_everything_is_replaced(
    renderer: Renderer, environments: Environments, server: str
) -> None:
    if not shutil.which("nginx", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin"):
        pytest.skip("install nginx to have this run (Debian's package is nginx)")
    if os.getuid():
        pytest.skip("nginx's own folders, which the shipped configuration uses, are root's")
    answers = {**parse_combination(BEHIND).answers, "deployment": "kubernetes", "server": server}
    command = f"just render ../service {answers}"
    Service(renderer.render(answers), command, environments).run_inside(SCENARIO)
