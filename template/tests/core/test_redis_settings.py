"""Where Redis is: which URLs are taken, which are refused, and that none is ever shown."""

from urllib.parse import quote

import pytest
from pydantic import SecretStr, ValidationError

from app.core.redis_settings import RedisSettings, normalize_url
from app.settings import InvalidSettingsError, load_settings

# One that is there.
FILE = quote(__file__, safe="")


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://localhost:6380/3", "redis://localhost:6380/3"),
        ("rediss://:pass@cache.example:6380/0", "rediss://:pass@cache.example:6380/0"),
        ("redis://ada:p%40ss%2Fw%25rd@host:6379/0", "redis://ada:p%40ss%2Fw%25rd@host:6379/0"),
        ("redis://:p@ss@host/0", "redis://:p%40ss@host/0"),
        ("redis://:p[a]ss@host/0", "redis://:p%5Ba%5Dss@host/0"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379/0"),
        ("valkey://host/1", "redis://host/1"),
        ("valkeys://host/1", "rediss://host/1"),
        ("unix:///run/redis.sock?db=2", "unix:///run/redis.sock?db=2"),
        ("unix://:pass@/run/redis.sock", "unix://:pass@/run/redis.sock"),
        (
            f"rediss://host/0?ssl_ca_certs={FILE}",
            f"rediss://host/0?ssl_ca_certs={FILE}",
        ),
    ],
)
def test_a_url_of_one_server_is_taken(url: str, normal: str) -> None:
    assert normalize_url(url) == normal
    assert normalize_url(normal) == normal


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://host:26379/mymaster/0",
        "redis-sentinel://host:26379",
        "rediss+cluster://host:6379",
        "redis+cluster://host:6379",
        "redis://one:6379,two:6379/0",
    ],
)
def test_sentinel_and_cluster_are_refused_by_name(url: str) -> None:
    with pytest.raises(ValueError, match="Sentinel or Cluster"):
        normalize_url(url)


def test_the_service_does_not_start_with_a_url_of_sentinel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://:hunter2@host:26379/mymaster/0")
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings()
    assert "REDIS_URL: names Sentinel or Cluster" in str(refused.value)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:6379",
        "http://hunter2@localhost",
        "redis://",
        "redis://:hunter2@:6379",
        "redis://:hunter2/x@host:6379",
        "redis://:hunter2#x@host:6379",
        # What urllib's own messages would quote.
        "redis://:[hunter2]/x@host",
        "redis://:hunter2\N{FULLWIDTH NUMBER SIGN}/x@host",
        "redis://host:hunter2",
        "redis://host:99999",
        "redis://host/hunter2",
        "redis://host/0?hunter2=1",
        "redis://host/0?ssl_cert_reqs=none",
        "rediss://host/0?ssl_cert_reqs=hunter2",
        "rediss://host/0?ssl_ca_certs=/hunter2",
        "rediss://host/0?db=3",
        "unix://hunter2/x",
        "unix:///run/redis.sock?db=hunter2",
        "redis+sentinel://:hunter2@host",
    ],
)
def test_a_wrong_url_stops_the_start_and_is_not_shown(url: str) -> None:
    with pytest.raises(ValidationError) as refused:
        RedisSettings(REDIS_URL=SecretStr(url))
    [problem] = refused.value.errors(include_input=False, include_url=False)
    assert problem["loc"] == ("REDIS_URL",)
    assert "hunter2" not in problem["msg"]


@pytest.mark.parametrize(
    "url", ["rediss://:password@host/0", "redis://:foobared@localhost", "rediss://:Redis123@host"]
)
def test_production_refuses_a_well_known_password(url: str) -> None:
    [problem] = RedisSettings(REDIS_URL=SecretStr(url)).production_problems()
    assert "well-known" in problem


def test_production_refuses_to_guess_where_redis_is() -> None:
    [problem] = RedisSettings().production_problems()
    assert problem == "REDIS_URL: must be set in production"


@pytest.mark.parametrize(
    "url",
    [
        "rediss://:long-and-random@host",
        f"rediss://host?ssl_certfile={FILE}&ssl_keyfile={FILE}",
        "redis://localhost",
        "redis://127.0.0.2:6379",
        "redis://[::1]",
        "unix:///run/redis.sock",
    ],
)
def test_production_takes_a_server_that_others_do_not_reach(url: str) -> None:
    assert not list(RedisSettings(REDIS_URL=SecretStr(url)).production_problems())


@pytest.mark.parametrize(
    ("url", "problems"),
    [
        ("redis://host", ["no password", "no TLS"]),
        ("redis://10.0.0.7", ["no password", "no TLS"]),
        ("redis://:@host", ["no password", "no TLS"]),
        ("redis://:long-and-random@host", ["no TLS"]),
        ("rediss://host", ["no password"]),
        ("rediss://:long-and-random@host?ssl_cert_reqs=none", ["no TLS"]),
        ("rediss://:long-and-random@localhost.example?ssl_cert_reqs=none", ["no TLS"]),
    ],
)
def test_production_takes_less_only_if_told_so(url: str, problems: list[str]) -> None:
    refused = list(RedisSettings(REDIS_URL=SecretStr(url)).production_problems())
    assert all(problem in line for problem, line in zip(problems, refused, strict=True))
    assert all("REDIS_ALLOW_INSECURE" in line and "random" not in line for line in refused)
    told = RedisSettings(REDIS_URL=SecretStr(url), REDIS_ALLOW_INSECURE=True)
    assert not list(told.production_problems())


def test_the_settings_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(RedisSettings(REDIS_URL=SecretStr("redis://:hunter2@host")))
