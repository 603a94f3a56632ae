"""Guesses of passwords are counted in Redis, the same for all processes, and always limited."""

import httpx2

from tests.fixtures.application import Connect, MakeApp, open_client
from tests.fixtures.authentication import PASSWORD, Account, Accounts


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


async def test_no_outage_lifts_the_limit_on_guessing_the_password(make_app: MakeApp) -> None:
    app = make_app(
        REDIS_URL="redis://127.0.0.1:1/0",
        REDIS_TIMEOUT_SECONDS=0.1,
        RATE_LIMIT_ON_REDIS_OUTAGE="open",
    )
    async with app.router.lifespan_context(app) as state, open_client(app, state) as client:
        user = await Accounts(dict(state or {})).add()
        answers = [
            await client.post(
                "/api/v1/users/me/password",
                headers=user.headers,
                json={"current_password": "wrong", "new_password": PASSWORD},
            )
            for _ in range(11)
        ]

    assert [answer.status_code for answer in answers] == [422] * 10 + [429]
