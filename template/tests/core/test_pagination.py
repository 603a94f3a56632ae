"""Keyset pagination over a table of the test's own."""

from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator
from uuid import UUID

import httpx2
import pytest
from fastapi import APIRouter
from sqlalchemy import Uuid, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from uuid_utils.compat import uuid7

from app.core.database import Database, ReadSessionDep
from app.core.pagination import Page, PageParams, PageParamsDep, fetch_slice
from app.core.schemas import ApiModel
from tests.fixtures.application import ServeRouter


class OwnBase(DeclarativeBase):
    """Apart from the service's tables."""


class Note(OwnBase):
    """A row with a UUIDv7 primary key, as every list has."""

    __tablename__ = "pagination_notes"
    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid7)
    number: Mapped[int]


class NoteRead(ApiModel):
    """An item."""

    number: int


router = APIRouter(prefix="/api/v1")


@router.get("/notes")
async def list_notes(session: ReadSessionDep, page: PageParamsDep) -> Page[NoteRead]:
    """List every note."""
    return Page[NoteRead].model_validate(await fetch_slice(session, select(Note), page))


@router.get("/other-notes")
async def list_other_notes(session: ReadSessionDep, page: PageParamsDep) -> Page[NoteRead]:
    """List them again, as another list."""
    return await list_notes(session, page)


async def add_notes(database: Database, *numbers: int) -> None:
    async with database.transaction() as session:
        session.add_all([Note(id=uuid7(), number=number) for number in numbers])


@pytest.fixture
async def client(
    database: Database, serve_router: ServeRouter
) -> AsyncIterator[httpx2.AsyncClient]:
    async with database.transaction() as session:
        connection = await session.connection()
        await connection.run_sync(OwnBase.metadata.create_all)
    async with serve_router(router) as client:
        yield client


async def numbers_of_all_pages(client: httpx2.AsyncClient, limit: int) -> list[list[int]]:
    pages: list[list[int]] = []
    params: dict[str, str | int] = {"limit": limit}
    while True:
        answer = (await client.get("/api/v1/notes", params=params)).raise_for_status().json()
        pages.append([item["number"] for item in answer["items"]])
        if answer["next_cursor"] is None:
            return pages
        params["cursor"] = answer["next_cursor"]


async def test_the_pages_hold_every_row_once_newest_first(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, *range(1, 8))
    assert await numbers_of_all_pages(client, 3) == [[7, 6, 5], [4, 3, 2], [1]]


async def test_a_full_last_page_has_no_next_cursor(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, *range(1, 7))
    assert await numbers_of_all_pages(client, 3) == [[6, 5, 4], [3, 2, 1]]


async def test_an_empty_list_is_one_empty_page(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/api/v1/notes")).json() == {"items": [], "next_cursor": None}


async def test_rows_added_meanwhile_neither_repeat_nor_hide_others(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, 1, 2, 3, 4)
    first = (await client.get("/api/v1/notes?limit=2")).json()
    await add_notes(database, 5, 6)
    second = (await client.get(f"/api/v1/notes?limit=2&cursor={first['next_cursor']}")).json()
    assert [item["number"] for item in second["items"]] == [2, 1]


async def test_twenty_at_a_time_unless_told_otherwise(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, *range(120))
    assert len((await client.get("/api/v1/notes")).json()["items"]) == 20
    assert len((await client.get("/api/v1/notes?limit=100")).json()["items"]) == 100


@pytest.mark.parametrize(
    "limit", ["0", "101", "-1", "many", "", "1.0", "1_0", "+5", " 5", "5 ", "\u0665"]
)
async def test_any_other_limit_is_refused(client: httpx2.AsyncClient, limit: str) -> None:
    answer = await client.get("/api/v1/notes", params={"limit": limit})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"] == ["query", "limit"]


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "nonsense",
        "x" * 28,
        "=" * 28,
        "A" * 27 + "=",
        "x" * 5000,
        "\u00fc" * 28,
        "\x00" * 28,
        "A B" + "A" * 25,
        encoded(bytes(21)),
        encoded(b"0123456789abcdef"),
        encoded(b'{"id": 1, "x": "abcd"'),
        "01a1fd4c-1bd5-7194-a7dc-3b073daa989d",
        "' or 1=1 -- ' or 1=1 -- ' or",
    ],
)
async def test_a_malformed_cursor_is_refused(client: httpx2.AsyncClient, cursor: str) -> None:
    answer = await client.get("/api/v1/notes", params={"cursor": cursor})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["loc"] for error in answer.json()["errors"]] == [["query", "cursor"]]


async def test_a_cursor_of_another_list_is_refused(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, 1, 2)
    cursor = (await client.get("/api/v1/notes?limit=1")).json()["next_cursor"]
    assert (await client.get("/api/v1/notes", params={"cursor": cursor})).status_code == 200
    other = await client.get("/api/v1/other-notes", params={"cursor": cursor})
    assert other.status_code == 422


def test_a_page_has_a_name_fit_for_generated_clients() -> None:
    assert Page[NoteRead].__name__ == "NoteReadPage"


async def test_a_page_ends_before_it_is_made_of_too_many_rows(
    client: httpx2.AsyncClient, database: Database
) -> None:
    await add_notes(database, 400, 300, 500, 200, 5000)
    pages: list[list[int]] = []
    after: UUID | None = None
    for _ in range(3):
        async with database.read_only() as session:
            page = PageParams(limit=100, after=after, list_tag=b"list")
            notes = await fetch_slice(session, select(Note), page, rows=Note.number + 0)
        pages.append([note.number for note in notes.items])
        after = notes.items[-1].id
    # The first one is too many by itself, and the next three are just as many as there may be.
    assert pages == [[5000], [200, 500, 300], [400]]
    assert notes.next_cursor is None
