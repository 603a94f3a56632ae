"""The counts of failed logins are in Redis, and so the same for all processes."""

import httpx2

from tests.fixtures.application import Connect, MakeApp
from tests.fixtures.authentication import PASSWORD, Account


async def test_who_has_to_wait_has_to_wait_at_every_process(
    make_app: MakeApp, connect: Connect, anonymous_client: httpx2.AsyncClient, user: Account
) -> None:
    async def log_in(client: httpx2.AsyncClient, password: str) -> int:
        form = {"username": user.email, "password": password}
        return (await client.post("/api/v1/auth/token", data=form)).status_code

    async with connect(make_app()) as other_process:
        failed = [await log_in(anonymous_client, "wrong") for _ in range(5)]
        waiting = await log_in(other_process, PASSWORD)

    assert (failed, waiting) == ([401] * 5, 429)
