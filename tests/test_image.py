"""The image of a service, built for real; and what runs from it, on real servers."""

import json
import re
from pathlib import Path

import pytest

from tests.combinations import parse_combination
from tests.environments import Environments
from tests.images import Image, Images, what_is_missing
from tests.rendering import Renderer
from tests.service import Service

SCENARIO = Path(__file__).parent / "inside" / "image.py"
# Everything on, and what differs most from it.
BUILT = ("postgresql+redis+arq+jwt+websockets+example", "sqlite+example")
# Of development, or only needed to build.
UNWANTED = re.compile(
    r"(^|/)(uv|pytest|ruff|mypy|alembic\.lock|devtools|tests|uv\.lock|cc1|gcc|\.env.*)$"
)


@pytest.fixture(scope="module")
def images(pytestconfig: pytest.Config, folder: Path) -> Images:
    if reason := what_is_missing():
        pytest.skip(reason)
    return Images(folder / "images", pytestconfig.cache.mkdir("images"))


@pytest.fixture(scope="module", params=BUILT)
def built(
    request: pytest.FixtureRequest, renderer: Renderer, images: Images, environments: Environments
) -> tuple[Service, Image]:
    answers = {**parse_combination(request.param).answers, "deployment": "docker"}
    service = Service(renderer.render(answers), f"just render ../service {answers}", environments)
    # The build takes what the lock file names.
    service.install()
    (service.folder / "app" / ".env").write_text("SECRET_KEY=hunter2\n")
    return service, images.build(service.folder)


def test_it_holds_what_it_needs_and_nothing_else(built: tuple[Service, Image]) -> None:
    _, image = built
    assert sorted(p.name for p in (image.root / "srv").iterdir()) == [
        ".venv",
        "alembic.ini",
        "app",
        "migrations",
    ]
    files = [p.relative_to(image.root).as_posix() for p in image.root.rglob("*") if p.is_file()]
    assert [name for name in files if UNWANTED.search(name)] == []
    # Who runs it can change nothing of it.
    owners = {p.lstat().st_uid for p in (image.root / "srv").rglob("*")}
    assert owners == {0}


def test_it_says_how_it_is_run(built: tuple[Service, Image]) -> None:
    _, image = built
    assert image.config["User"] == "10001:10001"
    assert image.config["Cmd"][0] == "uvicorn"
    assert image.config["Labels"]["org.opencontainers.image.revision"] == "a1b2c3"


def test_everything_runs_from_it(
    built: tuple[Service, Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, image = built
    has = {p.relative_to(service.folder).as_posix() for p in service.folder.glob("app/*")}
    fixtures = {"scratch_database_url": "postgresql", "redis_url": "redis"}
    description = {
        "command": image.config["Cmd"],
        "health": image.config["Healthcheck"]["Test"][1:],
        "prefix": image.command({}, Path("DATA")),
        "fixtures": [
            name
            for name, file in fixtures.items()
            if (service.folder / "tests" / "fixtures" / f"{file}.py").exists()
        ],
        "has_worker": "app/worker.py" in has,
        "has_users": "app/users" in has,
        "has_orders": "app/orders" in has,
    }
    file = tmp_path / "image.json"
    file.write_text(json.dumps(description))
    monkeypatch.setenv("IMAGE_DESCRIPTION", str(file))
    service.run_inside(SCENARIO)
