"""Idempotency keys: a write that is sent twice happens once and is answered alike twice."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated

import structlog
from fastapi import Depends, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from sqlalchemy import (
    JSON,
    ColumnElement,
    LargeBinary,
    String,
    and_,
    delete,
    insert,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core.database import Base, Database, SessionDep, clock, is_lock_timeout
from app.core.errors import ConflictError, UnprocessableError
from app.core.principal import PrincipalDep
from app.core.routing import route_template
from app.core.settings import Section

# What a client may need of the first answer; the rest belongs to the single response.
_REPLAYED_HEADERS = ("content-type", "etag", "location")

_PURGE_BATCH = 1000

logger = structlog.get_logger(__name__)


class IdempotencySettings(Section):
    """How long a write can be repeated safely."""

    IDEMPOTENCY_TTL_SECONDS: int = Field(
        default=86_400,
        ge=60,
        le=30 * 86_400,
        description="How long the first answer to an Idempotency-Key is kept and replayed.",
    )


class IdempotencyKeyReusedError(UnprocessableError):
    """The key came with another request before."""

    code = "idempotency-key-reused"
    title = "Idempotency-Key used for another request"


class IdempotencyKeyInUseError(ConflictError):
    """The first request with this key is still being worked on."""

    code = "idempotency-key-in-use"
    title = "Request with this Idempotency-Key in progress"


class IdempotencyKey(Base):
    """The first answer to a key; the response is null only until its transaction's end."""

    __tablename__ = "idempotency_keys"

    principal_id: Mapped[str] = mapped_column(String(255), primary_key=True)
    operation: Mapped[str] = mapped_column(String(255), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int | None]
    headers: Mapped[dict[str, str] | None] = mapped_column(JSON)
    body: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(index=True)


class Idempotency:
    """The `Idempotency-Key` of one request; get it through `IdempotencyDep`."""

    def __init__(
        self, request: Request, session: AsyncSession, principal_id: str, key: str | None
    ) -> None:
        self._request = request
        self._session = session
        self._principal_id = principal_id
        self._key = key

    async def run(self, handler: Callable[[], Awaitable[Response]]) -> Response:
        """Run `handler` once for each key, and answer a repetition with the first response.

        The key is stored in the request's own transaction: it is there if and only if what the
        handler wrote is. So a request that fails leaves no key and can be sent again, and of two
        at the same time the second waits for the first one's commit and then replays it.

        Call it first, before the route reads anything. Without the header the handler just runs.

        Args:
            handler: Does the work and returns the whole response, with its headers and no stream.

        Raises:
            IdempotencyKeyReusedError: when the key came with another request before.
            IdempotencyKeyInUseError: when the first request with this key takes so long that the
                database's limit on waiting for locks is reached; to be sent again. Where the
                database cannot tell that from an outage, the answer is a 503 instead.
        """
        if self._key is None:
            return await handler()
        fingerprint = await self._fingerprint()
        first = await self._claim(self._key, fingerprint)
        if first is not None:
            return _replay(first, fingerprint)
        response = await handler()
        await self._session.execute(
            update(IdempotencyKey)
            .where(self._is(self._key))
            .values(
                status=response.status_code,
                headers={
                    name: value
                    for name, value in response.headers.items()
                    if name in _REPLAYED_HEADERS
                },
                body=bytes(response.body),
            )
        )
        return response

    async def _claim(self, key: str, fingerprint: str) -> IdempotencyKey | None:
        """Store the key for this request, or give what the first request with it has stored."""
        expired = _expired(self._request.state.settings)
        row = {
            "principal_id": self._principal_id,
            "operation": _operation(self._request),
            "key": key,
            "fingerprint": fingerprint,
            "created_at": clock(),
        }
        # A database that is out of reach must not pass for a key in use.
        await self._session.connection()
        # The second round is for a key that has expired.
        for _ in range(2):
            try:
                # The savepoint keeps the transaction usable when the key exists.
                async with self._session.begin_nested():
                    await self._session.execute(insert(IdempotencyKey).values(row))
            except IntegrityError:
                first = await self._session.scalar(
                    select(IdempotencyKey).where(self._is(key), ~expired)
                )
                if first is not None:
                    return first
                await self._session.execute(delete(IdempotencyKey).where(self._is(key), expired))
            except DBAPIError as error:
                if is_lock_timeout(error):
                    raise _in_use() from error
                raise
            else:
                return None
        raise _in_use()

    def _is(self, key: str) -> ColumnElement[bool]:
        return and_(
            IdempotencyKey.principal_id == self._principal_id,
            IdempotencyKey.operation == _operation(self._request),
            IdempotencyKey.key == key,
        )

    async def _fingerprint(self) -> str:
        body = await self._request.body()
        with suppress(ValueError, RecursionError):
            # A client library may order the members anew when it repeats a request.
            body = json.dumps(json.loads(body), sort_keys=True).encode()
        url = self._request.url
        parts = (self._request.method.encode(), url.path.encode(), url.query.encode(), body)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _operation(request: Request) -> str:
    return f"{request.method} {route_template(request.scope)}"


def _replay(first: IdempotencyKey, fingerprint: str) -> Response:
    if first.fingerprint != fingerprint:
        raise IdempotencyKeyReusedError(
            "This Idempotency-Key was used for another request; choose a new one.",
            errors=[
                {
                    "loc": ("header", "Idempotency-Key"),
                    "msg": "was used for another request",
                    "type": IdempotencyKeyReusedError.code,
                }
            ],
        )
    if first.status is None:
        raise _in_use()
    headers = {**(first.headers or {}), "Idempotency-Replayed": "true"}
    return Response(first.body, first.status, headers)


def _expired(settings: IdempotencySettings) -> ColumnElement[bool]:
    ttl = timedelta(seconds=settings.IDEMPOTENCY_TTL_SECONDS)
    return IdempotencyKey.created_at <= clock(-ttl)


def _in_use() -> IdempotencyKeyInUseError:
    return IdempotencyKeyInUseError(
        "The first request with this Idempotency-Key is still being worked on.",
        headers={"Retry-After": "1"},
    )


async def get_idempotency(
    request: Request,
    session: SessionDep,
    principal: PrincipalDep,
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            description="Any string unique to this write, such as a UUID. Sent again with the same "
            "body, the write is not repeated and its first answer comes back.",
            min_length=1,
            max_length=255,
            pattern=r"^[!-~]+$",
        ),
    ] = None,
) -> Idempotency:
    """Read the request's `Idempotency-Key`.

    Raises:
        RequestValidationError: when there are several different ones: a 422 like that of any
            other header.
    """
    if len(set(request.headers.getlist("Idempotency-Key"))) > 1:
        raise RequestValidationError(
            [
                {
                    "loc": ("header", "Idempotency-Key"),
                    "msg": "was sent more than once, with different values",
                    "type": "idempotency_key_ambiguous",
                }
            ]
        )
    return Idempotency(request, session, principal.id, key)


IdempotencyDep = Annotated[Idempotency, Depends(get_idempotency)]


def purge_expired_keys(
    database: Database, settings: IdempotencySettings
) -> Callable[[], Awaitable[None]]:
    """The periodic job that deletes what is no longer replayed, in short transactions."""

    async def purge() -> None:
        identity = tuple_(IdempotencyKey.principal_id, IdempotencyKey.operation, IdempotencyKey.key)
        expired = (
            select(IdempotencyKey.principal_id, IdempotencyKey.operation, IdempotencyKey.key)
            .where(_expired(settings))
            .limit(_PURGE_BATCH)
            # Several processes purge side by side instead of waiting for one another.
            .with_for_update(skip_locked=True)
        )
        purged = 0
        while True:
            async with database.transaction() as session:
                gone = await session.scalars(
                    delete(IdempotencyKey)
                    .where(identity.in_(expired))
                    .returning(IdempotencyKey.key)
                    .execution_options(synchronize_session=False)
                )
                batch = len(gone.all())
            purged += batch
            if batch < _PURGE_BATCH:
                break
        if purged:
            logger.info("idempotency_keys_purged", count=purged)

    return purge
