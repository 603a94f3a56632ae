"""Options, and the renders that the tests share."""

import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.combinations import (
    COMBINATIONS,
    Combination,
    UnknownCombinationError,
    parse_combination,
    parse_shard,
    shard,
)
from tests.costs import Costs
from tests.environments import Environments
from tests.groups import GroupScheduling, group_of
from tests.processor import count_orphans, processor_seconds
from tests.progress import Progress
from tests.rendering import Renderer
from tests.scratch import make_run_folder
from tests.service import Service, render_command
from tests.snapshot import copy_template
from tests.update.repository import TemplateRepository

RUN_FOLDER = "PYTEST_TEMPLATE_RUN_FOLDER"
# They run in a render: see tests/test_devtools.py.
collect_ignore = ["devtools"]
Rendered = Callable[[Combination], Path]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options that choose what to run."""
    group = parser.getgroup("combinations")
    group.addoption("--combination", help="only this one, such as postgresql+example")
    group.addoption("--shard", help="only a part of the combinations, such as 1/4")
    group.addoption("--costs-update", action="store_true", help="write tests/costs.json anew")
    group.addoption("--snapshot-update", action="store_true", help="write tests/snapshots anew")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for each core: half of the time, tests wait for processes and timeouts.

    A single combination is one worker's; the processes of its suite use the cores.
    """
    return 0 if config.getoption("--combination") else 2 * (os.cpu_count() or 1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> GroupScheduling:
    """Keep what belongs together on one worker."""
    return GroupScheduling(config, log)


# The reporter of the terminal registers itself as late as this.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Check the options, and report progress where the terminal is."""
    try:
        config.stash[_CHOSEN] = _chosen(config)
    except (UnknownCombinationError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    count_orphans()
    config.stash[_PROCESSOR] = processor_seconds()
    if not hasattr(config, "workerinput"):
        # The workers are children of this process.
        config.stash[_OWN_RUN_FOLDER] = make_run_folder()
        os.environ[RUN_FOLDER] = str(config.stash[_OWN_RUN_FOLDER])
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        progress = Progress(reporter, costs_update=config.getoption("--costs-update"))
        config.pluginmanager.register(progress, "progress")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the workers shared."""
    # Only its own: a run that a test starts, and that refuses its options, inherits another's.
    if (name := config.stash.get(_OWN_RUN_FOLDER, None)) is not None:
        shutil.rmtree(name, ignore_errors=True)


_OWN_RUN_FOLDER = pytest.StashKey[Path]()
_CHOSEN = pytest.StashKey[tuple[Combination, ...]]()


def _chosen(config: pytest.Config) -> tuple[Combination, ...]:
    if name := config.getoption("--combination"):
        return (parse_combination(name),)
    if text := config.getoption("--shard"):
        return tuple(shard(*parse_shard(text)))
    return COMBINATIONS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for `combination` once for each."""
    if "combination" in metafunc.fixturenames:
        chosen = metafunc.config.stash[_CHOSEN]
        metafunc.parametrize(
            "combination",
            chosen,
            ids=str,
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what does not depend on a combination to a full run, or to the first shard.

    What is known to take longest begins first, so that the workers finish at about the same time.
    """
    costs = Costs.read()
    # Among equals a combination comes later: its steps are many, and end sooner than a long one.
    groups = {item: group_of(item.nodeid) for item in items}
    items.sort(key=lambda item: (costs.of(groups[item]), "::" in groups[item]), reverse=True)
    text = config.getoption("--shard")
    is_first = text is None or parse_shard(text)[0] == 1
    if config.getoption("--combination") is None and is_first:
        return
    kept = [item for item in items if "combination" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    """Note the processor time that a test and its processes took."""
    report: pytest.TestReport = yield
    now = processor_seconds()
    used = now - item.config.stash.get(_PROCESSOR, 0.0)
    item.config.stash[_PROCESSOR] = now
    report.user_properties = [*report.user_properties, ("processor_seconds", used)]
    return report


_PROCESSOR = pytest.StashKey[float]()


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """A folder of the session with a short name: sockets of the services are below it."""
    with tempfile.TemporaryDirectory(prefix="template-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def template(folder: Path) -> Path:
    """A copy of the working tree without git."""
    return copy_template(folder / "template")


@pytest.fixture(scope="session")
def renderer(template: Path, folder: Path) -> Renderer:
    """Renders the working tree."""
    return Renderer(template, folder / "renders")


@pytest.fixture(scope="session")
def rendered(renderer: Renderer) -> Rendered:
    """The untouched render of a combination, made once; do not change it."""
    made: dict[Combination, Path] = {}

    def get(combination: Combination) -> Path:
        if combination not in made:
            made[combination] = renderer.render(combination.answers)
        return made[combination]

    return get


@pytest.fixture(scope="session")
def environments(pytestconfig: pytest.Config) -> Environments:
    """Where the services have what they declare, shared by the workers and kept between runs."""
    return Environments(kept=pytestconfig.cache.mkdir("services"), run=Path(os.environ[RUN_FOLDER]))


@pytest.fixture(scope="session")
def services(renderer: Renderer, environments: Environments) -> Callable[[Combination], Service]:
    """A render of a combination in which commands can be run, made once."""
    made: dict[Combination, Service] = {}

    def get(combination: Combination) -> Service:
        if combination not in made:
            folder = renderer.render(combination.answers)
            made[combination] = Service(folder, render_command(combination), environments)
        return made[combination]

    return get


@pytest.fixture
def service(combination: Combination, services: Callable[[Combination], Service]) -> Service:
    """The service of the combination that is tested."""
    return services(combination)


@pytest.fixture(scope="session")
def repository(folder: Path) -> TemplateRepository:
    """The template's history with the working tree as its newest release."""
    return TemplateRepository(folder / "repository")


@pytest.fixture(scope="session")
def workers() -> int:
    """How many workers the tests of a service may have, so that all together use every core."""
    outer = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return max(1, (os.cpu_count() or 1) // outer)
