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
    service = services(BEHIND)
    copied = service.folder / "tests" / "test_pgbouncer.py"
    shutil.copyfile(SCENARIO, copied)
    try:
        service.run(["pytest", "-n0", "-q", "-p", "no:cacheprovider", str(copied)])
    finally:
        copied.unlink()
