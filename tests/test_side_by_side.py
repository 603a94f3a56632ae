"""Old and new code on the same tables, through a change of them that takes several releases."""

from collections.abc import Callable
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.service import Service

SCENARIO = Path(__file__).parent / "inside" / "side_by_side.py"


def test_releases_that_change_a_table_fail_no_request(
    services: Callable[[Combination], Service],
) -> None:
    services(parse_combination("postgresql+example")).run_inside(SCENARIO)
