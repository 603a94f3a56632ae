"""What `/metrics` tells of jobs: the service's of those that wait, a worker's of those it ran."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import httpx2
from prometheus_client import REGISTRY

from app.core.outbox import OutboxJob
from tests.core.test_metrics import value_of
from tests.fixtures.jobs import Jobs, WorkHere, eventually
from tests.fixtures.process import reserve_port
from tests.jobs import definitions
from tests.jobs.definitions import Note

TRIES = "job_try_duration_seconds_count"
DONE = {"name": "tests.note", "outcome": "done"}


def all_done(found: Sequence[OutboxJob]) -> bool:
    return all(row.done_at for row in found)


def _has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


async def test_jobs_that_wait_and_jobs_that_ran(
    client: httpx2.AsyncClient, jobs: Jobs, work_here: WorkHere, tmp_path: Path
) -> None:
    await jobs.a_dead_letter()
    await jobs.enqueue(definitions.note, Note(file=tmp_path / "notes"))
    text = (await client.get("/metrics")).text
    assert value_of(text, "dead_letters") == 1
    assert value_of(text, "outbox_jobs", state="due") == 1
    assert value_of(text, "outbox_overdue_seconds") > 0

    before = REGISTRY.get_sample_value(TRIES, DONE) or 0
    port = reserve_port()
    async with work_here(WORKER_METRICS_PORT=port):
        await eventually(jobs.rows, all_done)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as worker:
            answer = await worker.get("/metrics")
            # The server may close while the rest of it is being sent.
            with suppress(httpx2.TransportError):
                long = await worker.get("/metrics", headers={"X-Long": "x" * 100_000})
                assert long.status_code == 431
            forwarded = await worker.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"})
            if _has_ipv6():
                assert (await worker.get(f"http://[::1]:{port}/metrics")).status_code == 200
    assert value_of(answer.text, TRIES, **DONE) == before + 1
    assert "\njob_queue_length " in answer.text
    assert forwarded.status_code == 404

    text = (await client.get("/metrics")).text
    assert value_of(text, "outbox_jobs") == 0
    assert value_of(text, "outbox_overdue_seconds") == 0
