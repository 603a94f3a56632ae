"""What holds for every combination, up to the service's own tests in an environment of its own."""

import secrets
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.combinations import Combination
from tests.service import SUITE, TYPES, Service
from tests.snapshot import clean_files, read_tree
from tests.vocabulary import leftovers

FORMAT = ["ruff", "format", "--check"]
LINT = ["ruff", "check"]
IMPORTS = ["lint-imports", "--no-logo"]
DEPENDENCIES = ["deptry", "."]
# A sixth of the time of a suite, and the same requests wherever the same is described.
FUZZ = "tests/test_contract_fuzz.py"
START_WITHOUT_FILES = Path(__file__).parent / "inside" / "start_without_files.py"
SNAPSHOTS = Path(__file__).parent / "snapshots"
Rendered = Callable[[Combination], Path]


def test_a_second_render_is_byte_identical(
    combination: Combination, rendered: Rendered, service: Service
) -> None:
    """The second one is the service in which the commands below are run."""
    assert service.as_rendered == read_tree(rendered(combination))


def test_nothing_is_left_of_what_is_off(combination: Combination, rendered: Rendered) -> None:
    assert list(leftovers(rendered(combination), combination)) == []


def test_the_tree_is_as_recorded(
    combination: Combination, rendered: Rendered, request: pytest.FixtureRequest
) -> None:
    recorded = SNAPSHOTS / f"{combination}.txt"
    tree = "".join(f"{name}\n" for name in clean_files(rendered(combination)))
    if request.config.getoption("--snapshot-update"):
        recorded.write_text(tree)
    assert recorded.exists(), f"{recorded.name} is missing: run `uv run just snapshots`"
    assert tree == recorded.read_text(), "run `uv run just snapshots` if this is what you want"


def test_its_api_is_that_of_the_one_that_is_fuzzed(
    combination: Combination, rendered: Rendered
) -> None:
    assert descriptions(rendered(combination)) == descriptions(rendered(combination.fuzzed))


def descriptions(service: Path) -> dict[str, str]:
    return {
        path.relative_to(service).as_posix(): path.read_text()
        for path in service.glob("tests/**/openapi.json")
    }


def test_its_environment_holds_what_it_declares(service: Service) -> None:
    service.install()


def test_it_is_formatted(service: Service) -> None:
    service.run(FORMAT)


def test_it_is_linted(service: Service) -> None:
    service.run(LINT)


def test_imports_point_one_way(service: Service) -> None:
    service.run(IMPORTS)


def test_it_declares_what_it_imports(service: Service) -> None:
    service.run(DEPENDENCIES)


def test_it_starts_where_nothing_can_be_written(
    combination: Combination, service: Service, tmp_path: Path
) -> None:
    secret = secrets.token_hex(32)
    database_urls = {
        "postgresql": f"postgresql://service:{secret}@127.0.0.1:1/service",
        "sqlite": f"sqlite:///{tmp_path}/service.db",
    }
    variables = {
        "ENVIRONMENT": "production",
        "DATABASE_URL": database_urls[combination.database],
        "REDIS_URL": "redis://127.0.0.1:1/0",
        "SECRET_KEY": secret,
        "PYTHONPATH": str(service.folder),
    }
    service.run(["python", "-B", str(START_WITHOUT_FILES)], extra=variables)


def test_just_check_runs_what_is_run_here(service: Service) -> None:
    shown = service.run(["just", "--dry-run", "check"], extra={"UV": "uv"}).splitlines()
    commands = (FORMAT, LINT, TYPES, IMPORTS, DEPENDENCIES, SUITE)
    conflicts, *others = shown
    assert conflicts.startswith("! git grep ")
    # What the recipe runs without arguments.
    plain = [line.removeprefix("exec ").replace('"${@:---cov}"', "--cov") for line in others]
    assert plain == [shlex.join(["uv", "run", *command]) for command in commands]


def test_its_own_tests_pass(
    combination: Combination,
    service: Service,
    workers: int,
    record_property: Callable[[str, object], None],
    pytestconfig: pytest.Config,
) -> None:
    is_alone = pytestconfig.getoption("--combination") is not None
    is_fuzzed = is_alone or combination.fuzzed == combination
    record_property("fuzzed", is_fuzzed)
    # Measuring costs half as much again before Python 3.14; what lies between the extremes is
    # covered as well as they are.
    result = service.run_suite(
        workers, measured=combination.is_extreme, left_out="" if is_fuzzed else FUZZ
    )
    record_property("suite_tests", result.passed)


# Last: the workers take turns, and the first of them waits for no other.
def test_types_are_strict(service: Service) -> None:
    service.check_types()
