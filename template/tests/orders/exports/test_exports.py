import csv
import io
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import anyio
import httpx2
import pytest
from sqlalchemy import func, select

from app.core import dead_letters, outbox
from app.core.database import Database
from app.core.job_runner import JobRunner
from app.core.jobs import JobContext, JobRegistry, Tick
from app.core.outbox import Ticket
from app.orders.exports import csv_file, download, repository, router, service
from app.orders.exports import jobs as export_jobs
from app.orders.exports.models import OrderExport, OrderExportChunk
from app.orders.models import Order, OrderLine, OrderStatus
from app.settings import Settings
from tests.factories.orders import OrderFactory
from tests.fixtures.caller import Caller
from tests.fixtures.jobs import Jobs, WorkHere, eventually

PATH = "/api/v1/orders/exports"


async def make(jobs: Jobs, settings: Settings) -> None:
    """Do in this process what a worker would do."""
    registry = JobRegistry.of([export_jobs])
    async with httpx2.AsyncClient() as client:
        runner = JobRunner(registry, jobs.database, client, settings)
        for row in await jobs.rows():
            await runner.run(Ticket(row.id, row.tries))


async def several(
    count: int, client: httpx2.AsyncClient, jobs: Jobs, settings: Settings
) -> list[str]:
    """Have exports made one after the other; their ids."""
    ids = []
    for _ in range(count):
        ids.append((await client.post(PATH)).json()["id"])
        await make(jobs, settings)
    return ids


def parse(response: httpx2.Response) -> list[dict[str, str]]:
    assert response.status_code == 200
    return list(csv.DictReader(io.StringIO(response.content.decode(), newline="")))


async def test_an_export_is_accepted_made_by_a_worker_and_fetched(
    client: httpx2.AsyncClient, work_here: WorkHere, orders: OrderFactory
) -> None:
    [order] = await orders.placed()
    accepted = await client.post(PATH)
    assert accepted.status_code == 202
    assert accepted.json()["status"] == "pending"
    location = accepted.headers["location"]
    assert location == f"{PATH}/{accepted.json()['id']}"
    pending = await client.get(location)
    assert (pending.json(), pending.headers["retry-after"]) == (accepted.json(), "1")
    assert (await client.get(f"{location}/file")).status_code == 409

    async def look() -> dict[str, Any]:
        export: dict[str, Any] = (await client.get(location)).json()
        return export

    async with work_here():
        export = await eventually(look, lambda found: found["status"] == "ready")

    assert export["order_count"] == 1
    file = await client.get(f"{location}/file", headers={"Accept-Encoding": "identity"})
    assert file.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    assert int(file.headers["content-length"]) == len(file.content) == export["size"]
    assert file.headers["cache-control"] == "private, no-store"
    assert "attachment" in file.headers["content-disposition"]
    assert parse(file) == [
        {
            "order_id": str(order.id),
            "status": "placed",
            "created_at": order.created_at.isoformat(),
            "customer_email": "ada@example.com",
            "order_total": "33.90",
            "sku": sku,
            "quantity": quantity,
            "unit_price": price,
        }
        for sku, quantity, price in (("TEA-250", "2", "12.50"), ("MUG-WHITE", "1", "8.90"))
    ]


async def test_nobody_sees_the_exports_or_the_orders_of_another(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    orders: OrderFactory,
    act_as_header: str,
    settings: Settings,
) -> None:
    mine = (await orders.owned_by("ada").placed())[0]
    await orders.owned_by("eve").placed()
    ada, eve = {act_as_header: "ada"}, {act_as_header: "eve"}
    location = (await client.post(PATH, headers=ada)).headers["location"]
    await make(jobs, settings)

    for path in (location, f"{location}/file"):
        assert (await client.get(path, headers=eve)).status_code == 404
        assert (await client.get(path, headers=ada)).status_code == 200
    lines = parse(await client.get(f"{location}/file", headers=ada))
    assert {line["order_id"] for line in lines} == {str(mine.id)}
    [listed] = (await client.get(PATH, headers=ada)).json()["items"]
    assert location.endswith(listed["id"])
    assert (await client.get(PATH, headers=eve)).json() == {"items": [], "next_cursor": None}


async def test_cells_that_a_spreadsheet_would_execute_are_text(
    client: httpx2.AsyncClient,
    caller: Caller,
    jobs: Jobs,
    database: Database,
    settings: Settings,
) -> None:
    skus = ['=HYPERLINK("https://evil.example";"x")', "+1", "-1", "@SUM(A1)", "plain", "a=b"]
    now = datetime.now(UTC)
    async with database.transaction() as session:
        session.add(
            Order(
                owner_id=caller.id,
                customer_email="=cmd@example.com",
                status=OrderStatus.PLACED,
                lines=[
                    OrderLine(position=position, sku=sku, quantity=1, unit_price=Decimal(1))
                    for position, sku in enumerate(skus)
                ],
                total=Decimal(len(skus)),
                created_at=now,
                updated_at=now,
            )
        )
    location = (await client.post(PATH)).headers["location"]
    await make(jobs, settings)

    lines = parse(await client.get(f"{location}/file"))

    assert [line["sku"] for line in lines] == [f"'{sku}" for sku in skus[:4]] + skus[4:]
    assert {line["customer_email"] for line in lines} == {"'=cmd@example.com"}


async def test_a_file_of_many_pages_and_pieces_is_whole(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    orders: OrderFactory,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "_LINES_AT_ONCE", 5)
    stored = await orders.placed(10)
    location = (await client.post(PATH)).headers["location"]
    await make(jobs, settings)

    lines = parse(await client.get(f"{location}/file"))

    assert [line["order_id"] for line in lines[::2]] == [str(order.id) for order in stored]


async def test_an_export_that_is_made_twice_has_one_file(
    client: httpx2.AsyncClient, jobs: Jobs, database: Database, orders: OrderFactory
) -> None:
    await orders.placed(2)
    export_id = UUID((await client.post(PATH)).json()["id"])
    for _ in range(2):
        async with database.transaction() as session:
            await service.ExportMaker(database, session).make(export_id, orders.owner_id)

    lines = parse(await client.get(f"{PATH}/{export_id}/file"))
    assert len(lines) == 4
    assert len(await jobs.rows()) == 1


async def test_the_owner_of_an_export_that_fails_is_told(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: Any) -> None:
        raise ZeroDivisionError

    location = (await client.post(PATH)).headers["location"]
    monkeypatch.setattr(service.ExportMaker, "make", fail)
    await make(jobs, settings)

    assert (await client.get(location)).json()["status"] == "failed"
    assert (await client.get(f"{location}/file")).status_code == 409
    assert len(await jobs.letters()) == 1


async def test_a_request_while_one_is_pending_is_answered_with_that_one(
    client: httpx2.AsyncClient, jobs: Jobs, settings: Settings, act_as_header: str
) -> None:
    first, second = await client.post(PATH), await client.post(PATH)
    other = await client.post(PATH, headers={act_as_header: "eve"})
    assert (second.status_code, second.json()) == (202, first.json())
    assert second.headers["location"] == first.headers["location"]
    assert other.json()["id"] != first.json()["id"]
    assert len(await jobs.rows()) == 2

    await make(jobs, settings)
    assert (await client.post(PATH)).json()["id"] != first.json()["id"]


async def test_of_simultaneous_requests_one_starts_an_export(
    client: httpx2.AsyncClient, jobs: Jobs
) -> None:
    ids: list[str] = []

    async def request() -> None:
        answer = await client.post(PATH)
        assert answer.status_code == 202, answer.text
        ids.append(answer.json()["id"])

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(request)

    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert len(await jobs.rows()) == 1


async def test_an_owner_keeps_the_newest_exports_only(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    settings: Settings,
    act_as_header: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service, "KEPT_PER_OWNER", 2)
    eve = (await client.post(PATH, headers={act_as_header: "eve"})).headers["location"]
    made = await several(4, client, jobs, settings)

    listed = (await client.get(PATH)).json()["items"]
    assert [item["id"] for item in listed] == made[:1:-1]
    assert (await client.get(eve, headers={act_as_header: "eve"})).status_code == 200
    async with jobs.database.read_only() as session:
        assert await session.scalar(select(func.count()).select_from(OrderExportChunk)) == 3


@pytest.mark.parametrize("end", ["dead letter", "vanished"])
async def test_an_export_whose_job_ended_without_a_word_fails_and_makes_room_for_another(
    client: httpx2.AsyncClient, jobs: Jobs, settings: Settings, act_as_header: str, end: str
) -> None:
    [ready] = await several(1, client, jobs, settings)
    pending = (await client.post(PATH, headers={act_as_header: "eve"})).headers["location"]
    lost = (await client.post(PATH)).headers["location"]
    row = (await jobs.rows())[-1]
    async with jobs.database.transaction() as session:
        if end == "dead letter":
            await dead_letters.bury(session, row, "PayloadMismatchError", "")
        else:
            await outbox.remove(session, Ticket(row.id, row.tries))
    async with httpx2.AsyncClient() as http_client, jobs.database.transaction() as session:
        context = JobContext("1", 1, session, jobs.database, http_client, settings)
        await export_jobs.fail_lost_exports.job.handler(
            Tick(scheduled_for=datetime.now(UTC)), context
        )

    assert (await client.get(lost)).json()["status"] == "failed"
    assert (await client.get(f"{PATH}/{ready}")).json()["status"] == "ready"
    eve = await client.get(pending, headers={act_as_header: "eve"})
    assert eve.json()["status"] == "pending"
    assert (await client.post(PATH)).headers["location"] != lost


async def test_a_repeated_request_with_one_key_makes_one_export(
    client: httpx2.AsyncClient, jobs: Jobs
) -> None:
    answers = [await client.post(PATH, headers={"Idempotency-Key": "once"}) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    assert len(await jobs.rows()) == 1


async def test_exports_are_listed_newest_first_page_by_page(
    client: httpx2.AsyncClient, jobs: Jobs, settings: Settings
) -> None:
    made = await several(3, client, jobs, settings)

    first = (await client.get(PATH, params={"limit": 2})).json()
    second = (await client.get(PATH, params={"limit": 2, "cursor": first["next_cursor"]})).json()

    assert [item["id"] for item in first["items"] + second["items"]] == made[::-1]
    assert second["next_cursor"] is None


async def test_exports_are_no_order_called_exports(client: httpx2.AsyncClient) -> None:
    assert (await client.get(f"{PATH}/{uuid4()}")).json()["type"].endswith("export-not-found")


async def test_old_exports_are_deleted_with_their_files(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    database: Database,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "_EXPORTS_AT_ONCE", 2)
    ids = [UUID(id_) for id_ in await several(6, client, jobs, settings)]
    async with database.transaction() as session:
        for id_ in ids[:5]:
            export = await session.get_one(OrderExport, id_)
            export.created_at = datetime.now(UTC) - timedelta(days=8)

    assert await service.delete_old(database) == 5

    async with database.read_only() as session:
        kept: Sequence[UUID] = (await session.scalars(select(OrderExport.id))).all()
        chunks = await session.scalar(select(func.count()).select_from(OrderExportChunk))
    assert (kept, chunks) == ([ids[5]], 1)


async def test_a_caller_fetches_few_files_at_once(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    settings: Settings,
    orders: OrderFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await orders.placed()
    [export_id] = await several(1, client, jobs, settings)
    read, reading, resumed = service.read_file, anyio.Event(), anyio.Event()

    async def read_slowly(database: Database, export_id: UUID) -> AsyncIterator[bytes]:
        async for chunk in read(database, export_id):
            reading.set()
            await resumed.wait()
            yield chunk

    monkeypatch.setattr(router, "read_file", read_slowly)
    monkeypatch.setattr(download, "MOST_AT_ONCE", 1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.get, f"{PATH}/{export_id}/file")
        await reading.wait()
        refused = await client.get(f"{PATH}/{export_id}/file")
        resumed.set()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.headers["retry-after"] == "1"
    assert (await client.get(f"{PATH}/{export_id}/file")).status_code == 200


async def test_an_export_goes_on_where_a_worker_had_to_stop_and_counts_no_try(
    client: httpx2.AsyncClient,
    jobs: Jobs,
    orders: OrderFactory,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(repository, "_LINES_AT_ONCE", 5)
    monkeypatch.setattr(service, "_SECONDS_AT_ONCE", 0)
    stored = await orders.placed(6)
    threads: list[threading.Thread] = []

    def lines(rows: Any) -> bytes:
        threads.append(threading.current_thread())
        return format_lines(rows)

    format_lines = csv_file.lines
    monkeypatch.setattr(csv_file, "lines", lines)
    location = (await client.post(PATH)).headers["location"]
    runs = 0
    while (export := (await client.get(location)).json())["status"] == "pending":
        assert export["size"] is None
        await make(jobs, settings)
        runs += 1
        assert [row.tries for row in await jobs.rows() if not row.done_at] in ([0], [])

    assert runs == 3
    file = parse(await client.get(f"{location}/file"))
    assert [line["order_id"] for line in file[::2]] == [str(order.id) for order in stored]
    assert export["order_count"] == 6
    # The event loop has others to serve.
    assert threading.main_thread() not in threads


async def test_a_few_exports_are_made_at_the_same_time_whoever_waits(
    client: httpx2.AsyncClient, jobs: Jobs, act_as_header: str
) -> None:
    for number in range(20):
        assert (await client.post(PATH, headers={act_as_header: str(number)})).is_success
    async with jobs.database.transaction() as session:
        taken = await outbox.take_due(session, 100, timedelta(seconds=60))

    assert 1 <= len(taken) <= export_jobs.LANES
