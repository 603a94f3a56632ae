"""The options that a PostgreSQL URL may have, and what becomes of each."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from app.core.postgresql import DatabaseSettings
from app.core.postgresql_url import normalize_url, option
from app.settings import InvalidSettingsError, load_settings


def settings_for(options: str, **values: Any) -> DatabaseSettings:
    return DatabaseSettings(
        DATABASE_URL=SecretStr(f"postgresql://u:hunter2@db/app?{options}"), **values
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("application_name=shop", {"DB_APPLICATION_NAME": "shop"}),
        ("statement_timeout=1500", {"DB_STATEMENT_TIMEOUT_SECONDS": 1.5}),
        ("lock_timeout=0", {"DB_LOCK_TIMEOUT_SECONDS": 0}),
        (
            "idle_in_transaction_session_timeout=2000",
            {"DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS": 2},
        ),
        ("connect_timeout=7", {"DB_CONNECT_TIMEOUT_SECONDS": 7}),
        (
            "connection_limit=3&pool_timeout=4",
            {"DB_POOL_SIZE": 3, "DB_MAX_OVERFLOW": 0, "DB_POOL_TIMEOUT_SECONDS": 4},
        ),
        ("pgbouncer=true", {"DB_PGBOUNCER": True}),
        ("pgbouncer=false", {"DB_PGBOUNCER": False}),
        ("statement_cache_size=0", {"DB_PGBOUNCER": True}),
        ("prepared_statement_cache_size=0", {"DB_PGBOUNCER": True}),
    ],
)
def test_an_option_that_is_a_setting_sets_it(options: str, expected: dict[str, Any]) -> None:
    settings = settings_for(options)

    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.DATABASE_URL.get_secret_value() == "postgresql://u:hunter2@db/app"


def test_a_variable_comes_before_the_option_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    options = "application_name=url&statement_timeout=1000"
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:hunter2@db/app?{options}")
    monkeypatch.setenv("DB_APPLICATION_NAME", "variable")

    settings = load_settings()

    assert settings.DB_APPLICATION_NAME == "variable"
    assert settings.DB_STATEMENT_TIMEOUT_SECONDS == 1


def test_another_name_of_sslmode_is_translated() -> None:
    url = settings_for("ssl=require").DATABASE_URL.get_secret_value()

    assert url == "postgresql://u:hunter2@db/app?sslmode=require"


def test_a_slash_is_no_name_of_a_database() -> None:
    assert normalize_url("postgresql://u@db/?dbname=app") == "postgresql://u@db?dbname=app"


def test_the_certificates_of_the_system_are_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))

    url = normalize_url("postgresql://u@db/app?sslrootcert=system")

    assert option(url, "sslmode") == "verify-full"
    assert option(url, "sslrootcert") == str(file)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("require_auth=none&requirepeer=me", "(require_auth, requirepeer)"),
        ("sslmode=require&work_mem=1MB", "(work_mem)"),
        ("sslaccept=strict", "options=-c"),
        ("ssl=true", "unknown ssl; use one of disable"),
        ("sslnegotiation=quick", "unknown sslnegotiation"),
        ("target_session_attrs=master", "unknown target_session_attrs"),
        ("statement_cache_size=500", "unknown statement_cache_size; use one of 0"),
        ("pgbouncer=yes", "unknown pgbouncer"),
        ("schema=shop", "unknown schema; use one of public"),
        ("ssl_min_protocol_version=1.2", "unknown ssl_min_protocol_version; use one of TLSv1"),
        ("ssl_max_protocol_version=TLSv9", "unknown ssl_max_protocol_version"),
        ("gsslib=other", "unknown gsslib"),
        ("jit=foo", "unknown jit; use one of on, off"),
        ("passfile=/missing", "not there, in passfile"),
        ("service=shop", "(service)"),
        ("port=abc", "port that is not a number"),
        ("user=ada&dbname=shop", "dbname and user twice; take it out of the options"),
        ("host=/run&password=hunter2", "host and password twice"),
        ("port=5433", "port twice"),
        ("options=abc", "options= that the server does not read"),
        ("sslmode=verify-full&sslrootcert=/missing/ca.pem", "not there, in sslrootcert"),
        ("sslcert=/missing&sslkey=/missing", "not there, in sslcert"),
        ("sslmode=require&sslrootcert=system", "which needs sslmode=verify-full"),
        ("sslnegotiation=direct", "which needs sslmode=require or verify-full"),
        ("statement_timeout=5s", "statement_timeout that is no whole number of milliseconds"),
        ("connection_limit=many", "connection_limit that is no whole number"),
    ],
)
def test_an_option_that_nobody_would_obey_stops_the_start_by_name(
    options: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", f"postgresql://u:hunter2@db/app?{options}")

    with pytest.raises(InvalidSettingsError) as failure:
        load_settings()

    message = str(failure.value)
    assert message.startswith("DATABASE_URL: has ")
    assert complaint in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@db/app?password=pass&hunter2",
        "postgresql://u@db/app?password=pass&hunter2=1",
        "postgresql://u@db/app?password=pass#hunter2",
        "postgresql://u:12?hunter2&b@db/app",
        "postgresql://u:12?a&hunter2=b@db/app",
    ],
)
def test_what_may_be_part_of_a_password_is_not_shown_as_the_name_of_an_option(url: str) -> None:
    with pytest.raises(ValidationError) as failure:
        DatabaseSettings(DATABASE_URL=SecretStr(url))

    [problem] = failure.value.errors()
    assert "hunter2" not in problem["msg"]
    assert "percent-encode" in problem["msg"]
