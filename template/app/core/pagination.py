"""Keyset pagination, newest first, over UUIDv7 primary keys."""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Depends, Query
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError
from sqlalchemy import ColumnElement, Select
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.requests import HTTPConnection

from app.core.schemas import ApiModel

T = TypeVar("T")

DEFAULT_LIMIT = 20
MAX_LIMIT = 100
# A row takes some 40 microseconds of processor, during which the process serves nobody else.
MAX_ROWS = 1000

# 4 bytes that name the list and 17 of key need no base64 padding: 28 characters.
_LIST_TAG_BYTES = 4
_KEY_FORMAT = b"\x01"
_CURSOR_LENGTH = 28


class Page(ApiModel, Generic[T]):
    """One page of a list; pass `next_cursor` as `cursor` to get the page after it."""

    items: list[T]
    next_cursor: str | None = Field(
        description="`null` on the last page. A page before it may have fewer items than `limit`."
    )

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Name the schema `OrderPage` rather than `Page_Order_` in OpenAPI and its clients."""
        return f"{params[0].__name__}Page"


@dataclass(frozen=True, slots=True)
class Slice(Generic[T]):
    """One page of rows, as a repository returns it; `Page[Item].model_validate(slice)` fits."""

    items: Sequence[T]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class PageParams:
    """Which page the client asks for."""

    limit: int
    after: UUID | None
    list_tag: bytes

    def cursor_after(self, key: UUID) -> str:
        """The cursor of the page that starts after the row with this primary key."""
        return urlsafe_b64encode(self.list_tag + _KEY_FORMAT + key.bytes).decode()


def _plain_digits(value: object) -> object:
    # pydantic would read " 5", "+5", "1_0" and "1.0" as well.
    if isinstance(value, str) and not (value.isascii() and value.isdigit()):
        raise PydanticCustomError("int_parsing", "Input should be an integer, in plain digits")
    return value


_Limit = Annotated[int, Field(ge=1, le=MAX_LIMIT), BeforeValidator(_plain_digits)]


async def get_page_params(
    connection: HTTPConnection,
    limit: Annotated[_Limit, Query()] = DEFAULT_LIMIT,
    cursor: Annotated[
        str | None, Query(description="`next_cursor` of the page before; opaque.")
    ] = None,
) -> PageParams:
    """Read `?limit=` and `?cursor=`.

    Raises:
        RequestValidationError: when the cursor was not made by this list: a 422 like that of
            any other parameter.
    """
    # A cursor of another list would silently start at an arbitrary place.
    list_tag = hashlib.blake2b(
        connection.scope["path"].encode("utf-8", "replace"), digest_size=_LIST_TAG_BYTES
    ).digest()
    after = None if cursor is None else _decode(cursor, list_tag)
    return PageParams(limit, after, list_tag)


PageParamsDep = Annotated[PageParams, Depends(get_page_params)]


def _decode(cursor: str, list_tag: bytes) -> UUID:
    prefix = list_tag + _KEY_FORMAT
    try:
        raw = urlsafe_b64decode(cursor) if len(cursor) == _CURSOR_LENGTH else b""
    except ValueError:
        raw = b""
    if not raw.startswith(prefix) or len(raw) != len(prefix) + 16:
        raise RequestValidationError(
            [
                {
                    "loc": ("query", "cursor"),
                    "msg": "is not a cursor of this list; start again without one",
                    "type": "cursor_invalid",
                }
            ]
        )
    return UUID(bytes=raw[len(prefix) :])


async def fetch_slice(
    session: AsyncSession,
    statement: Select[T],
    params: PageParams,
    *,
    rows: ColumnElement[int] | None = None,
) -> Slice[T]:
    """Run `statement` for one page, newest first.

    The cost is the same for every page, and rows that come or go between two requests neither
    repeat nor hide others.

    Args:
        session: Where to run it; one query, or two with `rows`.
        statement: `select(Model)` with any `where` and `options`; the model's primary key is a
            UUIDv7 column `id`. Its order and limit are set here.
        params: The page to get.
        rows: How many rows an item is made of, if it is more than one: a scalar subquery that
            counts them. The page then ends before `MAX_ROWS`, but not before its first item, so
            that a page costs the same however large its items are.
    """
    key = statement.column_descriptions[0]["entity"].id
    if params.after is not None:
        statement = statement.where(key < params.after)
    statement = statement.order_by(key.desc())
    limit = params.limit
    if rows is not None:
        counted = statement.with_only_columns(key, rows).limit(limit)
        totals = accumulate(count for _, count in await session.execute(counted))
        limit = max(1, sum(total <= MAX_ROWS for total in totals))
    # One item more than there is room for tells whether there is a next page.
    items = (await session.scalars(statement.limit(limit + 1))).unique().all()
    has_next = len(items) > limit
    items = items[:limit]
    return Slice(items, params.cursor_after(_id(items[-1])) if has_next else None)


def _id(row: Any) -> UUID:
    key: UUID = row.id
    return key
