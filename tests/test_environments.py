"""The environments that services share: that they hold anything undeclared would be noticed."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.combinations import Combination, parse_combination
from tests.environments import LOCK, MARKER, Environments, InstallationFailedError
from tests.service import Service, clean_environment

CHOSEN = parse_combination("sqlite")
STRAY = "Metadata-Version: 2.1\nName: stray\nVersion: 1.0\n"


@pytest.fixture
def environment(services: Callable[[Combination], Service]) -> Iterator[Path]:
    """Another environment of the same, linked to the files of the first."""
    made = services(CHOSEN).install()
    # On the same disk, as links need it.
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        copied = Path(folder, made.name)
        shutil.copytree(made, copied, symlinks=True, copy_function=os.link)
        (copied / MARKER).touch()
        yield copied


def prepare(environment: Path, service: Service, environments: Environments) -> Path:
    others = Environments(kept=environment.parent, run=environments.run)
    return others.prepare(service.folder, clean_environment())


def test_a_package_too_many_is_noticed(
    environment: Path, services: Callable[[Combination], Service], environments: Environments
) -> None:
    assert prepare(environment, services(CHOSEN), environments) == environment
    [packages] = environment.glob("lib/python*/site-packages")
    stray = packages / "stray-1.0.dist-info"
    stray.mkdir()
    (stray / "METADATA").write_text(STRAY)
    (stray / "INSTALLER").write_text("uv\n")
    (stray / "RECORD").write_text("")
    with pytest.raises(InstallationFailedError, match="outdated"):
        prepare(environment, services(CHOSEN), environments)


def test_a_missing_package_is_noticed(
    environment: Path, services: Callable[[Combination], Service], environments: Environments
) -> None:
    [metadata] = environment.glob("lib/python*/site-packages/structlog-*.dist-info")
    shutil.rmtree(metadata)
    with pytest.raises(InstallationFailedError, match="outdated"):
        prepare(environment, services(CHOSEN), environments)


def test_services_that_declare_the_same_have_one_environment(
    services: Callable[[Combination], Service],
) -> None:
    service, other = services(CHOSEN), services(parse_combination("sqlite+websockets"))
    assert other.install() == service.install()
    assert (other.folder / LOCK).read_text() != "", "what it declares was resolved for itself"
