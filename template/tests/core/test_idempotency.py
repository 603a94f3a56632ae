"""Idempotency keys on a route of the test's own, on the service's database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import httpx2
import pytest
from fastapi import APIRouter, Depends, Header, Request, Response
from pydantic import BaseModel, SecretStr
from sqlalchemy import func, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.core.database import Database, SessionDep
from app.core.errors import ConflictError
from app.core.idempotency import (
    IdempotencyDep,
    IdempotencyKey,
    IdempotencySettings,
    purge_expired_keys,
)
from app.core.principal import Principal, set_principal
from tests.fixtures.application import ServeRouter

SETTINGS = IdempotencySettings()

# Set by a request that has stored its key and is at work.
at_work = asyncio.Event()
# Lets those end that were told to wait for it.
may_end = asyncio.Event()


class OwnBase(DeclarativeBase):
    """Apart from the service's tables."""


class Note(OwnBase):
    """What a request writes."""

    __tablename__ = "idempotency_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class NoteCreate(BaseModel):
    """What to write, and how to go about it."""

    text: str
    fail: bool = False
    seconds: float = 0
    waits: bool = False


async def guard(request: Request, user: Annotated[str | None, Header()] = None) -> None:
    """Trust whoever says who they are."""
    if user:
        set_principal(request, Principal(user))


router = APIRouter(prefix="/api/v1", dependencies=[Depends(guard)])


@router.post("/notes")
async def add_note(body: NoteCreate, session: SessionDep, idempotency: IdempotencyDep) -> Response:
    """Write a note once."""

    async def add() -> Response:
        note = Note(text=body.text)
        session.add(note)
        await session.flush()
        at_work.set()
        await asyncio.sleep(body.seconds)
        if body.waits:
            await may_end.wait()
        if body.fail:
            raise ConflictError("failed after writing")
        headers = {"Location": f"/api/v1/notes/{note.id}", "ETag": '"1"', "X-Once": "1"}
        return Response(f'{{"id": {note.id}}}', 201, headers, "application/json")

    return await idempotency.run(add)


@router.post("/lists/{list_id}/notes")
async def add_to_list(list_id: int, session: SessionDep, idempotency: IdempotencyDep) -> Response:
    """Write a note, as another operation."""
    return await add_note(NoteCreate(text=f"list {list_id}"), session, idempotency)


@pytest.fixture
async def client(
    database: Database, serve_router: ServeRouter
) -> AsyncIterator[httpx2.AsyncClient]:
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(OwnBase.metadata.create_all)
    async with serve_router(router) as client:
        yield client


async def post(
    client: httpx2.AsyncClient, key: str | None, body: object, user: str = ""
) -> httpx2.Response:
    headers = {"user": user} | ({} if key is None else {"Idempotency-Key": key})
    return await client.post("/api/v1/notes", json=body, headers=headers)


async def count(database: Database, table: type[DeclarativeBase]) -> int:
    async with database.read_only() as session:
        return await session.scalar(select(func.count()).select_from(table)) or 0


async def age(database: Database, seconds: float) -> None:
    async with database.transaction() as session:
        created_at = datetime.now(UTC) - timedelta(seconds=seconds)
        await session.execute(update(IdempotencyKey).values(created_at=created_at))


async def test_the_same_request_again_gets_the_first_answer(
    client: httpx2.AsyncClient, database: Database
) -> None:
    first = await post(client, "k", {"text": "a"})
    again = await post(client, "k", {"text": "a"})
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.content == first.content
    for header in ("Location", "ETag", "Content-Type", "Content-Length"):
        assert again.headers[header] == first.headers[header]
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["X-Request-ID"] != first.headers["X-Request-ID"]
    assert await count(database, Note) == 1


async def test_without_a_key_every_request_is_a_new_one(
    client: httpx2.AsyncClient, database: Database
) -> None:
    for _ in range(2):
        assert (await post(client, None, {"text": "a"})).status_code == 201
    assert await count(database, Note) == 2
    assert await count(database, IdempotencyKey) == 0


async def test_another_body_with_the_same_key_is_refused(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await post(client, "k", {"text": "a"})
    refused = await post(client, "k", {"text": "b"})
    assert refused.status_code == 422
    assert refused.json()["type"] == "urn:problem:idempotency-key-reused"
    assert refused.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert await count(database, Note) == 1


async def test_the_same_json_written_otherwise_is_the_same_request(
    client: httpx2.AsyncClient,
) -> None:
    bodies = ['{"text": "a", "seconds": 0}', '{ "seconds":0,\n"text":"\\u0061" }']
    answers = [
        await client.post(
            "/api/v1/notes",
            content=body,
            headers={"Idempotency-Key": "k", "Content-Type": "application/json"},
        )
        for body in bodies
    ]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert "Idempotency-Replayed" in answers[1].headers


async def test_keys_belong_to_a_principal_and_an_operation(
    client: httpx2.AsyncClient, database: Database
) -> None:
    answer = await post(client, "k", {"text": "a"}, user="one")
    other_user = await post(client, "k", {"text": "b"}, user="two")
    assert other_user.status_code == 201
    for user, text, first in (("one", "a", answer), ("two", "b", other_user)):
        assert (await post(client, "k", {"text": text}, user=user)).content == first.content
    headers = {"user": "one", "Idempotency-Key": "k"}
    other_operation = await client.post("/api/v1/lists/1/notes", headers=headers)
    assert other_operation.status_code == 201
    assert await count(database, Note) == 3
    # The same operation on another resource is another request.
    other_list = await client.post("/api/v1/lists/2/notes", headers=headers)
    assert other_list.status_code == 422


async def test_a_failed_request_leaves_no_key_and_can_be_sent_again(
    client: httpx2.AsyncClient, database: Database
) -> None:
    failed = await post(client, "k", {"text": "a", "fail": True})
    assert failed.status_code == 409
    assert await count(database, IdempotencyKey) == 0
    assert await count(database, Note) == 0
    assert (await post(client, "k", {"text": "a"})).status_code == 201


async def test_of_many_at_the_same_time_one_writes_and_the_others_replay(
    client: httpx2.AsyncClient, database: Database
) -> None:
    answers = await asyncio.gather(
        *(post(client, "k", {"text": "a", "seconds": 0.1}) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 7
    assert await count(database, Note) == 1


async def test_whoever_waits_for_a_request_that_fails_writes_instead(
    client: httpx2.AsyncClient, database: Database
) -> None:
    at_work.clear()
    first = asyncio.create_task(post(client, "k", {"text": "a", "fail": True, "seconds": 0.2}))
    await at_work.wait()
    second = await post(client, "k", {"text": "b"})
    assert ((await first).status_code, second.status_code) == (409, 201)
    assert "Idempotency-Replayed" not in second.headers
    assert await count(database, Note) == 1


async def test_whoever_waits_too_long_is_told_to_come_back(
    client: httpx2.AsyncClient, database: Database, serve_router: ServeRouter
) -> None:
    async with serve_router(router, DB_LOCK_TIMEOUT_SECONDS=0.2) as impatient:
        at_work.clear()
        may_end.clear()
        first = asyncio.create_task(post(client, "k", {"text": "a", "waits": True}))
        await at_work.wait()
        second = await post(impatient, "k", {"text": "a", "waits": True})
        may_end.set()
        # 503 where the database cannot tell a long wait from an outage.
        assert (second.status_code, second.json()["type"]) in {
            (409, "urn:problem:idempotency-key-in-use"),
            (503, "about:blank"),
        }
        assert int(second.headers["Retry-After"]) >= 1
        assert (await first).status_code == 201
        third = await post(impatient, "k", {"text": "a", "waits": True})
    assert third.content == (await first).content
    assert await count(database, Note) == 1


async def test_an_outage_does_not_pass_for_a_key_in_use(
    serve_router: ServeRouter, unreachable_database_url: str
) -> None:
    async with serve_router(router, DATABASE_URL=SecretStr(unreachable_database_url)) as cut_off:
        answer = await post(cut_off, "k", {"text": "a"})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


async def test_an_expired_key_is_as_good_as_new(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await post(client, "k", {"text": "a"})
    await age(database, SETTINGS.IDEMPOTENCY_TTL_SECONDS + 1)
    answers = await asyncio.gather(*(post(client, "k", {"text": "b"}) for _ in range(5)))
    assert {answer.status_code for answer in answers} == {201}
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 4
    assert await count(database, Note) == 2


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "tab\there", "\u00fc"])
async def test_a_key_that_is_not_plain_text_of_up_to_255_characters_is_refused(
    client: httpx2.AsyncClient, database: Database, key: str
) -> None:
    answer = await client.post(
        "/api/v1/notes",
        json={"text": "a"},
        headers=[(b"Idempotency-Key", key.encode("latin-1"))],
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert await count(database, Note) == 0


async def test_one_request_has_one_key(client: httpx2.AsyncClient, database: Database) -> None:
    def headers(*keys: str) -> list[tuple[str, str]]:
        return [("Idempotency-Key", key) for key in keys]

    refused = await client.post("/api/v1/notes", json={"text": "a"}, headers=headers("k", "l"))
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"] == ["header", "Idempotency-Key"]
    assert await count(database, Note) == 0
    again = await client.post("/api/v1/notes", json={"text": "a"}, headers=headers("k", "k"))
    assert again.status_code == 201


@pytest.mark.parametrize("key", ["x" * 255, '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "!~"])
async def test_any_other_key_is_fine(client: httpx2.AsyncClient, key: str) -> None:
    for _ in range(2):
        assert (await post(client, key, {"text": "a"})).status_code == 201


async def test_the_purge_deletes_what_has_expired_and_nothing_else(
    client: httpx2.AsyncClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.idempotency._PURGE_BATCH", 2)
    for number in range(5):
        await post(client, f"old {number}".replace(" ", "-"), {"text": "a"})
    await age(database, SETTINGS.IDEMPOTENCY_TTL_SECONDS + 1)
    await post(client, "fresh", {"text": "a"})
    await purge_expired_keys(database, SETTINGS)()
    assert await count(database, IdempotencyKey) == 1
    assert "Idempotency-Replayed" in (await post(client, "fresh", {"text": "a"})).headers


async def test_another_query_with_the_same_key_is_refused(client: httpx2.AsyncClient) -> None:
    answers = [
        await client.post(
            f"/api/v1/notes?{query}", json={"text": "a"}, headers={"Idempotency-Key": "k"}
        )
        for query in ("of=1", "of=2")
    ]
    assert [answer.status_code for answer in answers] == [201, 422]
