"""Where Redis is and how long to wait for it."""

import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from app.core.settings import Section, SettingError
from app.core.weak_passwords import is_easy_to_guess

_SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "unix": "unix",
    # Valkey speaks the same protocol.
    "valkey": "redis",
    "valkeys": "rediss",
}
_TLS_FILES = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_TLS_OPTIONS = {"ssl_cert_reqs", *_TLS_FILES}
_SET_ONE_OR_ALLOW = "set one, or REDIS_ALLOW_INSECURE=true if nobody else reaches the server"
_USE_OR_ALLOW = "use rediss://, or set REDIS_ALLOW_INSECURE=true if nobody reads along"
_AUTHORITY = re.compile(r"([^/?#]*)(.*)", re.DOTALL)
_ONE_SERVER = (
    "names Sentinel or Cluster, which this service does not speak; name one server or the "
    "endpoint in front of them, such as redis://host:6379/0"
)

KeyPrefix = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="What every key starts with; services that share a database of one server need "
        "different ones.",
    ),
]


def _normalize(url: SecretStr) -> SecretStr:
    return SecretStr(normalize_url(url.get_secret_value()))


class RedisSettings(Section):
    """How to reach Redis, or a server that speaks its protocol, such as Valkey."""

    REDIS_URL: Annotated[SecretStr, AfterValidator(_normalize)] = Field(
        default=SecretStr("redis://localhost:6379/0"),
        description="redis://user:password@host:6379/0, rediss:// for TLS, or unix:///path?db=0",
    )
    REDIS_KEY_PREFIX: KeyPrefix = "app"
    REDIS_POOL_SIZE: int = Field(
        default=20, ge=1, le=1000, description="The most connections of one process."
    )
    REDIS_TIMEOUT_SECONDS: float = Field(
        default=1,
        gt=0,
        le=60,
        description="How long one use of Redis may take, connecting included. After that the "
        "service goes on without Redis until it answers again.",
    )

    REDIS_ALLOW_INSECURE: bool = Field(
        default=False,
        description="Whether production may use a server on another machine without a password, or "
        "without TLS that checks its certificate, because the network between them is trusted.",
    )
    REDIS_REQUIRED: bool = Field(
        default=False,
        description="Whether requests should go elsewhere while Redis does not answer: for a "
        "service that keeps in it what requests cannot do without.",
    )

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if "REDIS_URL" not in self.model_fields_set:
            yield "REDIS_URL: must be set in production"
            return
        url = self.REDIS_URL.get_secret_value()
        if is_easy_to_guess(_password(url), "redis", "valkey"):
            yield "REDIS_URL: has a short or well-known password; choose a long random one"
        if _is_remote(url) and not self.REDIS_ALLOW_INSECURE:
            options = dict(parse_qsl(urlsplit(url).query))
            # Whoever can write to it decides what is limited and what users are shown.
            if not _password(url) and "ssl_certfile" not in options:
                yield f"REDIS_URL: has no password; {_SET_ONE_OR_ALLOW}"
            if not url.startswith("rediss:") or options.get("ssl_cert_reqs") == "none":
                yield f"REDIS_URL: has no TLS that checks the certificate; {_USE_OR_ALLOW}"


def normalize_url(url: str) -> str:
    """Check a URL and write it the way that every version of redis-py reads alike.

    Raises:
        SettingError: it is not the URL of one server; the message never quotes it.
    """
    scheme, separator, rest = url.partition("://")
    if any(kind in scheme.lower() for kind in ("sentinel", "cluster")):
        raise SettingError(_ONE_SERVER)
    if not separator or scheme.lower() not in _SCHEMES:
        raise SettingError(
            "must look like redis://user:password@host:6379/0 (or rediss://, unix://)"
        )
    scheme = _SCHEMES[scheme.lower()]
    authority, rest = _AUTHORITY.match(rest).groups()  # type: ignore[union-attr]
    # A password copied in as it is may hold an @, which would end it too early.
    credentials, at, address = authority.rpartition("@")
    user, colon, password = credentials.partition(":")
    credentials = f"{quote(unquote(user), safe='')}{colon}{quote(unquote(password), safe='')}"
    try:
        parts = urlsplit(f"{scheme}://{address}{rest}")
    except ValueError:
        # Its own message quotes what it could not read, which may be of the password.
        raise SettingError(
            "names a host that cannot be; percent-encode / ? # in passwords"
        ) from None
    if scheme == "unix":
        _check_socket(address, parts.path)
    else:
        _check_address(address, parts.path)
    if parts.fragment:
        raise SettingError("has a #; percent-encode / ? # in passwords")
    options = _options(parts.query, scheme)
    if scheme != "unix" and parts.path.strip("/") and "db" in options:
        raise SettingError("has the number of the database twice; take it out of the options")
    query = urlencode(options, quote_via=quote)
    return f"{scheme}://{credentials}{at}{address}{parts.path}{'?' if query else ''}{query}"


def _check_address(address: str, path: str) -> None:
    if "," in address:
        raise SettingError(_ONE_SERVER)
    host, _, after_bracket = address.rpartition("]")
    name, colon, port = after_bracket.partition(":")
    if not (host or name):
        raise SettingError("names no host")
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise SettingError("has a port that is not a number; percent-encode / ? # in passwords")
    if path.strip("/") and not path.strip("/").isdecimal():
        raise SettingError("has a path that is not the number of a database, such as /0")


def _check_socket(address: str, path: str) -> None:
    if address or not path:
        raise SettingError("must name a socket by its whole path: unix:///path?db=0")


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    allowed = {"db", *(_TLS_OPTIONS if scheme == "rediss" else ())}
    if unknown := options.keys() - allowed:
        count = f"{len(unknown)} option" + ("s" if len(unknown) > 1 else "")
        message = f"has {count} that it cannot have; allowed here: {', '.join(sorted(allowed))}"
        raise SettingError(message)
    if not options.get("db", "0").isdecimal():
        raise SettingError("has a db that is not a number")
    if options.get("ssl_cert_reqs", "required") not in {"none", "optional", "required"}:
        raise SettingError("has an ssl_cert_reqs that is not none, optional or required")
    for name in sorted(_TLS_FILES & options.keys()):
        if not Path(options[name]).is_file():
            message = f"has the name of a file that is not there, in {name}"
            raise SettingError(message)
    return options


def _is_remote(url: str) -> bool:
    host = urlsplit(url).hostname
    if url.startswith("unix:") or host is None:
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _password(url: str) -> str:
    credentials, _, _ = urlsplit(url).netloc.rpartition("@")
    return unquote(credentials.partition(":")[2])
