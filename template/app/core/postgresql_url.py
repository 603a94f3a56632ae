"""What a PostgreSQL URL may say, and how it is told to the driver and to the settings."""

import re
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

from app.core.settings import SettingError

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_TLS_VERSIONS = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_CHOICES = {
    "gsslib": ("gssapi", "sspi"),
    "jit": ("on", "off", "true", "false", "yes", "no", "1", "0"),
    "ssl_max_protocol_version": _TLS_VERSIONS,
    "ssl_min_protocol_version": _TLS_VERSIONS,
    "sslmode": _SSL_MODES,
    "ssl": _SSL_MODES,
    "sslnegotiation": ("postgres", "direct"),
    "target_session_attrs": (
        "any",
        "primary",
        "standby",
        "read-write",
        "read-only",
        "prefer-standby",
    ),
    # How SQLAlchemy, asyncpg and Prisma are told that there is a pooler, and nothing else.
    "prepared_statement_cache_size": ("0",),
    "statement_cache_size": ("0",),
    "pgbouncer": ("true", "false"),
    # Prisma's, and the default.
    "schema": ("public",),
}
# What the driver reads, and what it passes on to the server.
_KEPT = (
    "database",
    "dbname",
    "gsslib",
    "host",
    "krbsrvname",
    "passfile",
    "password",
    "port",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "target_session_attrs",
    "user",
    "jit",
    "options",
    "search_path",
    "timezone",
)
# libpq's, which tune or prefer and which this driver has no part for: nothing is lost without.
_DROPPED = (
    "channel_binding",
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "schema",
    "sslcompression",
    "sslsni",
    "tcp_user_timeout",
)
_FILES = ("passfile", "sslcert", "sslcrl", "sslkey", "sslrootcert")
_SECONDS = {
    "connect_timeout": "DB_CONNECT_TIMEOUT_SECONDS",
    "pool_timeout": "DB_POOL_TIMEOUT_SECONDS",
}
_MILLISECONDS = {
    "idle_in_transaction_session_timeout": "DB_IDLE_IN_TRANSACTION_TIMEOUT_SECONDS",
    "lock_timeout": "DB_LOCK_TIMEOUT_SECONDS",
    "statement_timeout": "DB_STATEMENT_TIMEOUT_SECONDS",
}
_NUMBERS: Final = {"connection_limit", *_SECONDS, *_MILLISECONDS}
_TRANSLATED: Final = {
    "application_name",
    "pgbouncer",
    "prepared_statement_cache_size",
    "ssl",
    "statement_cache_size",
    *_NUMBERS,
}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def normalize_url(url: str) -> str:
    """Translate what other tools accept into a `postgresql://` URL that asyncpg reads.

    `sslmode` and its companions keep libpq's meaning (`require` encrypts, `verify-full` also checks
    whom it talks to). Options that are settings of ours are taken out; see `settings_in_url`.

    Raises:
        SettingError: it is no PostgreSQL URL, or has an option that nobody would obey; the message
            never quotes it, but for names of options.
    """
    try:
        return _translate(url)
    except SettingError:
        raise
    except ValueError:
        # Its message quotes the URL, or a password that was taken for a host.
        message = "cannot be read; percent-encode special characters in the password"
        raise SettingError(message) from None


def settings_in_url(url: str) -> dict[str, str]:
    """The settings that a URL's options stand for, such as `?application_name=`, by variable."""
    options = _options(url.partition("?")[2])
    found: dict[str, str] = {}
    if "application_name" in options:
        found["DB_APPLICATION_NAME"] = options["application_name"]
    if options.get("pgbouncer") == "true" or options.keys() & {
        "prepared_statement_cache_size",
        "statement_cache_size",
    }:
        found["DB_PGBOUNCER"] = "true"
    if "connection_limit" in options:
        # Prisma's limit has nothing beyond it.
        found |= {"DB_POOL_SIZE": options["connection_limit"], "DB_MAX_OVERFLOW": "0"}
    found |= {name: options[option] for option, name in _SECONDS.items() if option in options}
    for option, name in _MILLISECONDS.items():
        if options.get(option, "").isdecimal():
            found[name] = str(int(options[option]) / 1000)
    return found


def option(url: str, name: str) -> str | None:
    """An option of a URL, if it has that."""
    return _options(urlsplit(url).query).get(name)


def password(url: str) -> str | None:
    """The password in a URL, if it has one."""
    credentials, at, _ = urlsplit(url).netloc.rpartition("@")
    _, colon, given = credentials.partition(":")
    in_query = option(url, "password")
    if in_query is not None:
        return in_query
    return unquote(given) if at and colon else None


def _translate(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        message = "must look like postgresql://user:password@host:5432/database"
        raise SettingError(message)
    # What is no UTF-8 was replaced, and the server ends a text at NUL.
    if {"\0", "\N{REPLACEMENT CHARACTER}"} & set(unquote(url)):
        message = "has a percent-encoded character that is NUL or not UTF-8"
        raise SettingError(message)
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    user, colon, given = credentials.partition(":")
    # A password copied in as it is may hold an @, which ends it too early for the driver.
    credentials = f"{quote(unquote(user), safe='')}{colon}{quote(unquote(given), safe='')}"
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts.split(",")]
    _check_ports(ports)
    if parts.fragment:
        message = "has a #; percent-encode / ? # in passwords"
        raise SettingError(message)
    options = _options(parts.query)
    if options.get("sslrootcert") == "system":
        options |= _trust_the_system(options)
    _check_names(options, parts.query)
    _check_values(options)
    database = parts.path.strip("/")
    # libpq obeys the option and the driver the rest of the URL: nobody could tell which is meant.
    _check_once(
        options,
        {
            "database": database or options.get("dbname"),
            "dbname": database,
            "host": hosts,
            "password": given,
            # A host without a port has the usual one.
            "port": hosts,
            "user": user,
        },
    )
    if "ssl" in options:
        # SQLAlchemy's and asyncpg's name for it.
        options.setdefault("sslmode", options["ssl"])
    query = urlencode({n: v for n, v in options.items() if n in _KEPT}, quote_via=quote)
    # A bare slash would be the name of a database for the driver, before ?dbname=.
    path = parts.path if database else ""
    return f"postgresql://{credentials}{at}{hosts}{path}{'?' if query else ''}{query}"


def _options(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}


def _trust_the_system(options: dict[str, str]) -> dict[str, str]:
    """What libpq means by `sslrootcert=system`, in terms of a file."""
    if options.get("sslmode", "verify-full") != "verify-full":
        message = "has an sslrootcert=system, which needs sslmode=verify-full"
        raise SettingError(message)
    return {
        "sslmode": "verify-full",
        "sslrootcert": ssl.get_default_verify_paths().cafile or "the system's certificates",
    }


def _check_names(options: dict[str, str], query: str) -> None:
    unknown = sorted(options.keys() - {*_KEPT, *_DROPPED, *_TRANSLATED})
    if unknown:
        # After an unescaped & or ? it may be a part of the password.
        is_secret = "@" in query or {"password", "sslpassword"} & options.keys()
        if is_secret or not all(_NAME.fullmatch(name) for name in unknown):
            unknown = ["percent-encode special characters in passwords"]
        message = (
            f"has options that are not known here ({', '.join(unknown)}); settings of the server "
            "are given as options=-c%20name%3Dvalue"
        )
        raise SettingError(message)


def _check_ports(ports: list[str]) -> None:
    for port in ports:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            message = "has a port that is not a number; percent-encode / ? # in passwords"
            raise SettingError(message)


def _check_once(options: dict[str, str], elsewhere: dict[str, str | None]) -> None:
    twice = [name for name, value in elsewhere.items() if value and name in options]
    if twice:
        message = f"has {' and '.join(twice)} twice; take it out of the options"
        raise SettingError(message)


def _check_values(options: dict[str, str]) -> None:
    for name, choices in _CHOICES.items():
        if name in options and options[name] not in choices:
            message = f"has an unknown {name}; use one of {', '.join(choices)}"
            raise SettingError(message)
    if not (options.get("options") or "-").lstrip().startswith("-"):
        message = "has options= that the server does not read; write options=-c%20name%3Dvalue"
        raise SettingError(message)
    _check_ports(options.get("port", "").split(","))
    direct = options.get("sslnegotiation") == "direct"
    if direct and options.get("sslmode") not in ("require", "verify-ca", "verify-full"):
        message = "has an sslnegotiation=direct, which needs sslmode=require or verify-full"
        raise SettingError(message)
    for name in _FILES:
        if name in options and not Path(options[name]).is_file():
            message = f"has the name of a file that is not there, in {name}"
            raise SettingError(message)
    for name in sorted(_NUMBERS & options.keys()):
        if not (options[name].isascii() and options[name].isdigit()):
            unit = "milliseconds" if name in _MILLISECONDS else "seconds"
            what = "whole number" if name == "connection_limit" else f"whole number of {unit}"
            message = f"has a {name} that is no {what}"
            raise SettingError(message)
