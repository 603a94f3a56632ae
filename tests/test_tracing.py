"""A real collector gets one trace of an order that a service and a worker have dealt with."""

from collections.abc import Callable
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.service import Service

SCENARIO = Path(__file__).parent / "inside" / "tracing.py"


def test_an_order_is_one_trace(services: Callable[[Combination], Service]) -> None:
    everything = "postgresql+redis+arq+jwt+websockets+example"
    services(parse_combination(everything)).run_inside(SCENARIO)
