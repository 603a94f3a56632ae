"""One's own account: reading and changing it, and that it takes a token."""

from typing import Any

import httpx2

from tests.fixtures.authentication import Account

ME = "/api/v1/users/me"
SOMEBODY = "/api/v1/users/019a0000-0000-7000-8000-000000000000"


async def test_without_a_token_there_is_nothing_to_see(
    anonymous_client: httpx2.AsyncClient,
) -> None:
    for method, path in (
        ("GET", ME),
        ("PATCH", ME),
        ("POST", f"{ME}/password"),
        ("GET", "/api/v1/users"),
        ("GET", SOMEBODY),
        ("PATCH", SOMEBODY),
    ):
        answer = await anonymous_client.request(method, path)
        assert answer.status_code == 401, (method, path)
        assert answer.headers["WWW-Authenticate"] == "Bearer"


async def test_users_see_themselves(client: httpx2.AsyncClient, user: Account) -> None:
    answer = await client.get(ME)
    assert answer.status_code == 200
    assert (answer.json()["id"], answer.json()["email"]) == (str(user.id), user.email)
    assert answer.json().keys() == {
        "id",
        "email",
        "full_name",
        "role",
        "is_active",
        "created_at",
        "updated_at",
    }


async def test_users_change_their_name_and_remove_it(client: httpx2.AsyncClient) -> None:
    before = (await client.get(ME)).json()
    named = (await client.patch(ME, json={"full_name": "Ada  Lovelace"})).json()
    assert named["full_name"] == "Ada Lovelace"
    assert named["updated_at"] > before["updated_at"]
    # What is omitted, or the same, is no change.
    assert (await client.patch(ME, json={})).json() == named
    assert (await client.patch(ME, json={"full_name": "Ada Lovelace"})).json() == named
    assert (await client.patch(ME, json={"full_name": None})).json()["full_name"] is None
    assert (await client.get(ME)).json()["full_name"] is None


async def test_users_change_nothing_else(client: httpx2.AsyncClient) -> None:
    before = (await client.get(ME)).json()
    refused: list[dict[str, Any]] = [
        {"role": "admin"},
        {"is_active": False},
        {"email": "countess@example.com"},
        {"password": "bernoulli numbers by engine"},
        {"full_name": ""},
        {"full_name": 1},
    ]
    for body in refused:
        assert (await client.patch(ME, json=body)).status_code == 422, body
    assert (await client.get(ME)).json() == before
