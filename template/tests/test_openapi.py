"""The API is what was agreed on; every operation can be used from its description alone."""

from collections import Counter
from typing import Any

import pytest
from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings
from devtools.openapi import TESTS, operations, snapshots, stored

_ADVICE = "the API differs from the snapshots; if that is meant, run `uv run just openapi`"


@pytest.fixture(scope="module")
def described() -> FastAPI:
    return create_app(Settings(_env_file=None))


@pytest.fixture(scope="module")
def schema(described: FastAPI) -> dict[str, Any]:
    return described.openapi()


def test_the_api_is_as_its_snapshots_say(described: FastAPI) -> None:
    assert stored(TESTS) == snapshots(described), _ADVICE


def test_every_operation_belongs_to_one_domain(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        assert len(operation.get("tags", ())) == 1, f"{method} {path} needs one tag: its domain"


def test_operation_ids_are_unique(schema: dict[str, Any]) -> None:
    ids = Counter(operation["operationId"] for _, _, operation in operations(schema))
    assert {name for name, count in ids.items() if count > 1} == set()


def test_every_operation_says_what_it_does(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        assert operation.get("description"), f"{method} {path} needs a docstring"


def test_errors_are_described_as_problems(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        responses = operation["responses"]
        problems = {status for status in responses if status == "default" or status >= "400"}
        assert "default" in problems, f"{method} {path} does not say what errors look like"
        # A readiness probe that fails answers with its checks.
        if path.startswith("/health/"):
            problems -= {"503"}
        for status in problems:
            content = set(responses[status]["content"])
            assert content == {"application/problem+json"}, f"{status} of {method} {path}"
