"""A standby made with pg_basebackup: one service fails over to it."""

from collections.abc import Callable
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.service import Service

WITH_STANDBY = parse_combination("postgresql+example")
SCENARIO = Path(__file__).parent / "inside" / "standby.py"


def test_a_service_fails_over_to_a_standby(services: Callable[[Combination], Service]) -> None:
    services(WITH_STANDBY).run_inside(SCENARIO)
