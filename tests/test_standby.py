"""A standby made with pg_basebackup: one service fails over to it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.combinations import Combination, parse_combination
from tests.service import Service

WITH_STANDBY = parse_combination("postgresql+example")
SCENARIO = Path(__file__).parent / "inside" / "standby.py"


def test_a_service_fails_over_to_a_standby(services: Callable[[Combination], Service]) -> None:
    service = services(WITH_STANDBY)
    copied = service.folder / "tests" / "test_standby.py"
    shutil.copyfile(SCENARIO, copied)
    try:
        service.run(["pytest", "-n0", "-q", "-p", "no:cacheprovider", str(copied)])
    finally:
        copied.unlink()
