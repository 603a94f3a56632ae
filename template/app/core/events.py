"""Events: recorded on the session by the code that writes, handed to subscribers after commit."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, ClassVar, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from app.core.background import BackgroundRunner

_INFO_KEY = "recorded_events"
_ATTEMPTS = 5
_FIRST_DELAY_SECONDS = 0.1

logger = structlog.get_logger(__name__)


class Event(BaseModel):
    """Something that happened; immutable, named in the past tense, made of plain values.

    It outlives the session, so it carries ids and values and never ORM objects.
    """

    model_config = ConfigDict(frozen=True)

    name: ClassVar[str]


E = TypeVar("E", bound=Event)
Handler = Callable[[E, AsyncSession], Awaitable[None]]
"""Reacts to an event in a transaction of its own; may run again after a failure."""

OpenTransaction = Callable[[], AbstractAsyncContextManager[AsyncSession]]


def record(session: AsyncSession, event: Event) -> None:
    """Note that `event` happens if and when the transaction of `session` commits."""
    recorded = session.info.setdefault(_INFO_KEY, [])
    recorded.append((event, session.sync_session.get_nested_transaction()))


def take_recorded(session: AsyncSession) -> list[Event]:
    """Remove and return what was recorded on `session` and has not been rolled back."""
    return [event for event, _ in session.info.pop(_INFO_KEY, ())]


@sqlalchemy_event.listens_for(Session, "after_soft_rollback")
def _forget_rolled_back(session: Session, transaction: SessionTransaction) -> None:
    recorded = session.info.get(_INFO_KEY)
    if recorded:
        # A savepoint takes back what was recorded in it and keeps the rest.
        recorded[:] = [
            (event, nested)
            for event, nested in recorded
            if transaction.nested and not _is_within(nested, transaction)
        ]


def _is_within(nested: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while nested is not None:
        if nested is outer:
            return True
        nested = nested.parent
    return False


class EventBus:
    """Delivers events to the handlers of this process.

    Delivery is in memory: an event is lost when the process dies between the commit and the end
    of its handlers. What must not be lost belongs into the transaction itself.
    """

    def __init__(self, background: BackgroundRunner) -> None:
        self._background = background
        self._handlers: dict[type[Event], list[Handler[Any]]] = defaultdict(list)

    def subscribe(self, event_type: type[E], handler: Handler[E]) -> None:
        """Have `handler` called for each committed event of exactly this type.

        It gets a session of its own, whose transaction commits when it returns. Temporary
        database failures repeat it a few times, so it must be safe to repeat.
        """
        self._handlers[event_type].append(handler)

    def dispatch(
        self,
        events: Iterable[Event],
        open_transaction: OpenTransaction,
        is_transient: Callable[[BaseException], bool],
    ) -> None:
        """Schedule the handlers of `events` and return at once.

        Args:
            events: What has been committed.
            open_transaction: Opens the transaction that each handler runs in.
            is_transient: Whether an error is worth another attempt.
        """
        for event in events:
            for handler in self._handlers.get(type(event), ()):
                deliver = partial(_deliver, event, handler, open_transaction, is_transient)
                self._background.spawn(f"{event.name}:{_name(handler)}", deliver)


async def _deliver(
    event: Event,
    handler: Handler[Any],
    open_transaction: OpenTransaction,
    is_transient: Callable[[BaseException], bool],
) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            async with open_transaction() as session:
                await handler(event, session)
        except Exception as error:
            log = logger.bind(event_name=event.name, handler=_name(handler), attempt=attempt)
            if attempt == _ATTEMPTS or not is_transient(error):
                log.exception("event_handler_failed")
                return
            log.warning("event_handler_retried", error=type(error).__name__)
        else:
            return
        # Exponential backoff with jitter, so that the handlers do not all come back at once.
        await asyncio.sleep(_FIRST_DELAY_SECONDS * 2**attempt * random.uniform(0.5, 1))


def _name(handler: Handler[Any]) -> str:
    return getattr(handler, "__qualname__", type(handler).__qualname__)
