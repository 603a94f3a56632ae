"""The embedded Valkey: its start, its end, and that several processes can share one."""

from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from devtools.valkey import ValkeyNotFoundError, ValkeyServer, find_program
from devtools.valkey_sharing import shared_server


def test_it_asks_for_a_password_that_only_we_can_read(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, throwaway=True)
    try:
        started = server.start()
        with Redis(port=started.port) as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
    finally:
        server.kill()
    assert (tmp_path / "password").stat().st_mode & 0o077 == 0


def test_its_data_outlive_it_and_it_comes_back_at_the_same_place(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, throwaway=False)
    try:
        url = server.start().url()
        with Redis.from_url(url) as client:
            client.set("key", "value")
        server.stop()
        assert server.start().url() == url
        with Redis.from_url(url) as client:
            assert client.get("key") == b"value"
    finally:
        server.kill()


def test_a_throwaway_server_comes_back_empty(private_redis: ValkeyServer) -> None:
    url = private_redis.start().url()
    with Redis.from_url(url) as client:
        client.set("key", "value")
        private_redis.kill()
        private_redis.start()
        assert client.get("key") is None


def test_users_share_one_server_that_ends_after_the_last(tmp_path: Path) -> None:
    with shared_server(tmp_path, throwaway=True) as one:
        with shared_server(tmp_path, throwaway=True) as other:
            assert other == one
        with Redis.from_url(one.url()) as client:
            client.ping()
    with shared_server(tmp_path, throwaway=True) as again, Redis.from_url(again.url()) as client:
        client.ping()


def test_without_a_program_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devtools.valkey.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValkeyNotFoundError, match="TEST_REDIS_URL"):
        find_program()
