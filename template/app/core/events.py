"""Events: recorded on the session by the code that writes, handed to subscribers after commit."""

import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, TypeVar

import structlog
from pydantic import BaseModel, ConfigDict
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from app.core.background import BackgroundRunner

_INFO_KEY = "recorded_events"
_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 10.0
# Long enough for a database to be restarted or to fail over.
_PATIENCE_SECONDS = 300.0
# Exit is not held up for that long: about 3 s.
_ATTEMPTS_AT_EXIT = 5

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

AfterCommit = Callable[[E], Awaitable[None]]
"""Reacts to a committed event before its request is answered: quick, and without the database."""

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
    of its handlers. What must not be lost belongs into the transaction itself; that is what
    `subscribe_before_commit` is for.
    """

    def __init__(self, background: BackgroundRunner) -> None:
        self._background = background
        self._handlers: dict[type[Event], list[Handler[Any]]] = defaultdict(list)
        self._before_commit: dict[type[Event], list[Handler[Any]]] = defaultdict(list)
        self._after_commit: dict[type[Event], list[AfterCommit[Any]]] = defaultdict(list)

    def subscribe(self, event_type: type[E], handler: Handler[E]) -> None:
        """Have `handler` called for each committed event of exactly this type.

        It gets a session of its own, whose transaction commits when it returns. Temporary
        database failures repeat it for about five minutes, so it must be safe to repeat.
        """
        self._handlers[event_type].append(handler)

    def subscribe_before_commit(self, event_type: type[E], handler: Handler[E]) -> None:
        """Have `handler` called in the transaction that recorded the event, before its commit.

        What it writes is committed or rolled back together with what the event stands for, and
        an error of it fails the whole transaction.
        """
        self._before_commit[event_type].append(handler)

    async def run_before_commit(self, session: AsyncSession) -> None:
        """Call the handlers that belong into the transaction of `session`."""
        # The list grows while it is gone through: handlers may record events of their own.
        for event, _ in session.info.get(_INFO_KEY, ()):
            for handler in self._before_commit.get(type(event), ()):
                await handler(event, session)

    def subscribe_after_commit(self, event_type: type[E], handler: AfterCommit[E]) -> None:
        """Have `handler` awaited after the commit and before the request is answered.

        For what a client must not be able to see from before its own write. It holds up the
        answer and cannot undo the commit, so its errors are only logged.
        """
        self._after_commit[event_type].append(handler)

    async def run_after_commit(self, events: Iterable[Event]) -> None:
        """Call the handlers that the answer waits for; never raises."""
        for event in events:
            for handler in self._after_commit.get(type(event), ()):
                try:
                    await handler(event)
                except Exception:
                    logger.exception(
                        "event_handler_failed", event_name=event.name, handler=_name(handler)
                    )

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
                delivery = _Delivery(
                    self._background, event, handler, open_transaction, is_transient
                )
                delivery.schedule()


class _Delivery:
    """One event on its way to one handler."""

    def __init__(
        self,
        background: BackgroundRunner,
        event: Event,
        handler: Handler[Any],
        open_transaction: OpenTransaction,
        is_transient: Callable[[BaseException], bool],
    ) -> None:
        self._background = background
        self._event = event
        self._handler = handler
        self._open_transaction = open_transaction
        self._is_transient = is_transient
        self._attempts = 0
        self._give_up_at = time.monotonic() + _PATIENCE_SECONDS

    def schedule(self, after: float = 0) -> None:
        name = f"{self._event.name}:{_name(self._handler)}"
        self._background.spawn(name, self._attempt, after=after)

    async def _attempt(self) -> None:
        self._attempts += 1
        try:
            async with self._open_transaction() as session:
                await self._handler(self._event, session)
        except Exception as error:
            log = logger.bind(
                event_name=self._event.name,
                handler=_name(self._handler),
                attempt=self._attempts,
            )
            if not self._is_transient(error) or self._is_out_of_patience():
                log.exception("event_handler_failed")
                return
            log.warning("event_handler_retried", error=type(error).__name__)
            # A task of its own: while it waits, others have their turn.
            self.schedule(after=self._delay())

    def _is_out_of_patience(self) -> bool:
        if self._background.stopping and self._attempts >= _ATTEMPTS_AT_EXIT:
            return True
        return time.monotonic() >= self._give_up_at

    def _delay(self) -> float:
        # The exponent is bounded, as a float's range is.
        doubled = _FIRST_DELAY_SECONDS * 2.0 ** min(self._attempts, 30)
        # Jitter, so that the handlers do not all come back at once.
        return min(doubled, _LONGEST_DELAY_SECONDS) * random.uniform(0.5, 1)


def _name(handler: Callable[..., Any]) -> str:
    return getattr(handler, "__qualname__", type(handler).__qualname__)
