"""Prometheus is no Python package: where the machine has it, it reads three services."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.combinations import Combination, parse_combination
from tests.service import Service

# Everything, the least, and what most services are.
COMBINATIONS = ("postgresql+redis+arq+jwt+websockets+example", "sqlite", "postgresql+jwt+example")
SCENARIO = Path(__file__).parent / "inside" / "observability.py"


@pytest.mark.parametrize("name", COMBINATIONS)
def test_prometheus_reads_a_service_and_evaluates_its_rules(
    services: Callable[[Combination], Service], name: str
) -> None:
    if not shutil.which("prometheus") or not shutil.which("promtool"):
        pytest.skip("install Prometheus to have this run (Debian's package is prometheus)")
    services(parse_combination(name)).run_inside(SCENARIO)
