"""PgBouncer is no Python package: where the machine has it, one service is run behind it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.combinations import Combination, parse_combination
from tests.service import Service

BEHIND = parse_combination("postgresql+example")
SCENARIO = Path(__file__).parent / "inside" / "pgbouncer.py"


def test_a_service_works_behind_pgbouncer_in_transaction_mode(
    services: Callable[[Combination], Service],
) -> None:
    if not shutil.which("pgbouncer", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin"):
        pytest.skip("install PgBouncer to have this run (Debian's package is pgbouncer)")
    services(BEHIND).run_inside(SCENARIO)
