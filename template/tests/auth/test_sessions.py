"""Sessions: listed for their user alone, and ended one by one or all at once."""

from uuid import UUID, uuid4

import httpx2
import pytest

from tests.fixtures.authentication import PASSWORD, Account, bearer

LOGOUT = "/api/v1/auth/logout"
SESSIONS = "/api/v1/auth/sessions"
ME = "/api/v1/users/me"


async def log_in(client: httpx2.AsyncClient, user: Account, user_agent: str) -> dict[str, str]:
    form = {"username": user.email, "password": PASSWORD}
    answer = await client.post("/api/v1/auth/token", data=form, headers={"User-Agent": user_agent})
    pair: dict[str, str] = answer.raise_for_status().json()
    return pair


async def refresh(client: httpx2.AsyncClient, token: str) -> int:
    answer = await client.post("/api/v1/auth/refresh", json={"refresh_token": token})
    return answer.status_code


async def test_each_login_is_a_session_of_its_own(
    client: httpx2.AsyncClient, user: Account, other_user: Account
) -> None:
    await log_in(client, user, "a phone")

    sessions = (await client.get(SESSIONS)).json()["items"]

    assert [session["user_agent"] for session in sessions] == ["a phone", "the suite"]
    assert [session["is_current"] for session in sessions] == [False, True]
    assert set(sessions[0]) == {
        "id",
        "user_agent",
        "created_at",
        "last_used_at",
        "expires_at",
        "is_current",
    }
    assert sessions[0]["created_at"] <= sessions[0]["last_used_at"] < sessions[0]["expires_at"]


async def test_a_refresh_keeps_the_session_and_moves_it_to_the_top(
    client: httpx2.AsyncClient, user: Account
) -> None:
    await log_in(client, user, "a phone")
    before = (await client.get(SESSIONS)).json()["items"]

    await refresh(client, user.tokens.refresh_token)

    after = (await client.get(SESSIONS)).json()["items"]
    assert [session["id"] for session in after] == [session["id"] for session in before[::-1]]
    assert after[0]["created_at"] == before[1]["created_at"]
    assert after[0]["last_used_at"] > before[1]["last_used_at"]


async def test_sessions_come_in_pages(client: httpx2.AsyncClient, user: Account) -> None:
    for _ in range(2):
        await log_in(client, user, "a phone")

    first = (await client.get(SESSIONS, params={"limit": 2})).json()
    rest = await client.get(SESSIONS, params={"limit": 2, "cursor": first["next_cursor"]})

    assert (len(first["items"]), len(rest.json()["items"])) == (2, 1)
    assert rest.json()["next_cursor"] is None


@pytest.mark.parametrize(
    ("sent", "kept"), [("x" * 300, "x" * 255), (" \x1b[31mred ", "[31mred"), ("", None)]
)
async def test_what_a_client_calls_itself_is_cut_and_cleaned(
    client: httpx2.AsyncClient, user: Account, sent: str, kept: str | None
) -> None:
    await log_in(client, user, sent)

    assert (await client.get(SESSIONS)).json()["items"][0]["user_agent"] == kept


async def test_ending_a_session_ends_its_tokens_and_no_others(
    client: httpx2.AsyncClient, user: Account
) -> None:
    phone = await log_in(client, user, "a phone")
    assert (await client.get(ME, headers=bearer(phone["access_token"]))).status_code == 200
    session = (await client.get(SESSIONS)).json()["items"][0]

    assert (await client.delete(f"{SESSIONS}/{session['id']}")).status_code == 204

    assert (await client.get(ME, headers=bearer(phone["access_token"]))).status_code == 401
    assert await refresh(client, phone["refresh_token"]) == 401
    assert (await client.get(ME)).status_code == 200
    assert (await client.delete(f"{SESSIONS}/{session['id']}")).status_code == 404


async def test_another_users_session_is_not_there(
    client: httpx2.AsyncClient, other_user: Account
) -> None:
    theirs = (await client.get(SESSIONS, headers=other_user.headers)).json()["items"][0]["id"]

    for session_id in (theirs, str(uuid4())):
        answer = await client.delete(f"{SESSIONS}/{session_id}")
        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:problem:session-not-found"
    assert (await client.get(ME, headers=other_user.headers)).status_code == 200


async def test_a_logout_ends_the_session_of_its_token(
    anonymous_client: httpx2.AsyncClient, user: Account
) -> None:
    phone = await log_in(anonymous_client, user, "a phone")
    body = {"refresh_token": phone["refresh_token"]}

    answers = [await anonymous_client.post(LOGOUT, json=body) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [204, 204]
    assert answers[0].content == b""
    assert await refresh(anonymous_client, phone["refresh_token"]) == 401
    me = await anonymous_client.get(ME, headers=bearer(phone["access_token"]))
    assert me.status_code == 401
    assert (await anonymous_client.get(ME, headers=user.headers)).status_code == 200


async def test_a_logout_works_with_a_token_that_was_just_refreshed(
    anonymous_client: httpx2.AsyncClient, user: Account
) -> None:
    await refresh(anonymous_client, user.tokens.refresh_token)
    body = {"refresh_token": user.tokens.refresh_token}

    assert (await anonymous_client.post(LOGOUT, json=body)).status_code == 204

    assert (await anonymous_client.get(ME, headers=user.headers)).status_code == 401


async def test_a_logout_does_not_tell_whether_the_token_was_good(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    answer = await anonymous_client.post(LOGOUT, json={"refresh_token": "unknown"})

    assert answer.status_code == 204


async def test_session_ids_are_those_of_the_tokens(
    client: httpx2.AsyncClient, user: Account
) -> None:
    session = (await client.get(SESSIONS)).json()["items"][0]

    assert UUID(session["id"]).version == 7
