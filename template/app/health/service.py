"""Whether the process can serve: the checks behind readiness, their deadline and their cache."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

import structlog
from pydantic import Field

from app.core.settings import CommaSeparated, Section
from app.health.schemas import Readiness

Check = Callable[[], Awaitable[object]]
"""Returns when the resource answers and raises when it does not; must not need a deadline."""

_Outcome = Literal["ok", "failed"]

logger = structlog.get_logger(__name__)


class HealthSettings(Section):
    """How readiness is found out."""

    HEALTH_TIMEOUT_SECONDS: float = Field(
        default=2,
        gt=0,
        le=30,
        description="How long the checks may take together; keep it below the probe's own limit.",
    )
    HEALTH_CACHE_SECONDS: float = Field(
        default=1, ge=0, le=60, description="How long an answer is good for further probes."
    )
    HEALTH_OPTIONAL_CHECKS: CommaSeparated = Field(
        default=[],
        description="Checks that are shown without making the service unavailable when they fail.",
    )


class HealthService:
    """Answers readiness.

    However many probes ask, each check runs at most once at a time and once for each
    `HEALTH_CACHE_SECONDS`; a probe that hangs up does not cancel it for the others.

    Args:
        settings: The deadline and the cache's life.
        checks: By the name under which the result is shown.
    """

    def __init__(self, settings: HealthSettings, checks: Mapping[str, Check]) -> None:
        self._timeout = settings.HEALTH_TIMEOUT_SECONDS
        self._cache_seconds = settings.HEALTH_CACHE_SECONDS
        self._checks = dict(checks)
        self._optional = set(settings.HEALTH_OPTIONAL_CHECKS)
        self._draining = False
        self._closed = False
        self._outcomes: dict[str, _Outcome] = {}
        self._fresh_until = -1.0
        self._round: asyncio.Task[None] | None = None
        self._running: dict[str, asyncio.Task[object]] = {}

    def add(self, name: str, check: Check, *, required: bool) -> None:
        """Have one more resource checked.

        Args:
            name: Under which the result is shown.
            check: How to find out.
            required: Whether the service is of no use without it. What every replica shares and
                can do without is not: its outage would take all of them out at once.
        """
        self._checks[name] = check
        if not required:
            self._optional.add(name)

    def is_draining(self) -> bool:
        """Whether the process is about to end."""
        return self._draining

    def start_draining(self) -> None:
        """Answer `unavailable` from now on: the process is about to end."""
        self._draining = True

    async def close(self) -> None:
        """End the checks that still run; call it before what they look at is closed."""
        self.start_draining()
        self._closed = True
        for task in self._running.values():
            task.cancel()
        if self._round is not None:
            await self._round

    async def readiness(self) -> Readiness:
        """Say whether to send requests here, within `HEALTH_TIMEOUT_SECONDS`; never raises."""
        if not self._closed and time.monotonic() >= self._fresh_until:
            if self._round is None or self._round.done():
                self._round = asyncio.create_task(self._run_checks())
            await asyncio.shield(self._round)
        failed = {name for name, outcome in self._outcomes.items() if outcome == "failed"}
        ready = not self._draining and failed <= self._optional
        return Readiness(status="ready" if ready else "unavailable", checks=self._outcomes)

    async def _run_checks(self) -> None:
        unknown = self._optional - self._checks.keys()
        if unknown and not self._outcomes:
            # No reason to refuse the start: the feature whose check it was may be off by now.
            logger.warning(
                "health_optional_checks_unknown", unknown=sorted(unknown), known=[*self._checks]
            )
        for name, check in self._checks.items():
            # One that hangs even after its cancellation is not started again beside itself.
            if name not in self._running:
                self._running[name] = asyncio.ensure_future(_as_coroutine(check))
        if self._running:
            # Unlike a timeout around each, this returns on time even if cancelling takes long.
            await asyncio.wait(self._running.values(), timeout=self._timeout)
        if self._closed:
            return
        for name, task in list(self._running.items()):
            self._note(name, self._problem(task))
            if task.done():
                del self._running[name]
        self._fresh_until = time.monotonic() + self._cache_seconds

    def _problem(self, task: asyncio.Task[object]) -> BaseException | None:
        if task.done() and not task.cancelled():
            return task.exception()
        task.cancel()
        return TimeoutError(f"no answer within {self._timeout:g} seconds")

    def _note(self, name: str, problem: BaseException | None) -> None:
        before = self._outcomes.get(name, "ok")
        self._outcomes = {**self._outcomes, name: "failed" if problem else "ok"}
        # The reason goes to the log only, and once: probes come every few seconds.
        if problem and before == "ok":
            logger.error("health_check_failed", check=name, exc_info=problem)
        elif not problem and before == "failed":
            logger.info("health_check_recovered", check=name)


async def _as_coroutine(check: Check) -> object:
    return await check()
