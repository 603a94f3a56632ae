"""How the service is reached: which origins, hosts, proxies, sizes and times are accepted."""

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from app.core.proxies import UNIX
from app.core.settings import CommaSeparated, Section, SettingError

_HOST_NAME = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


def _each(check: Callable[[str], bool], expected: str) -> Any:
    """Refuse a list by its first bad entry; the message counts instead of repeating the entry."""

    def validate(values: list[str]) -> list[str]:
        for position, value in enumerate(values, start=1):
            if not check(value):
                message = f"entry {position} is not {expected}"
                raise SettingError(message)
        return values

    return AfterValidator(validate)


def _is_origin(value: str) -> bool:
    if value == "*":
        return True
    try:
        url = urlsplit(value)
        # Browsers send lower case and leave the scheme's own port out; CORS compares exactly.
        return (
            url.scheme in {"http", "https"}
            and bool(url.hostname)
            and url.port != {"http": 80, "https": 443}[url.scheme]
            and value == f"{url.scheme}://{url.netloc}".lower()
            and "@" not in url.netloc
            and "*" not in value
        )
    except ValueError:
        return False


def _is_host(value: str) -> bool:
    return value == "*" or bool(_HOST_NAME.fullmatch(value))


def _is_network(value: str) -> bool:
    try:
        ip_network(value)
    except ValueError:
        return False
    return True


def _is_proxy(value: str) -> bool:
    return value == UNIX or _is_network(value)


def _is_plain(origin: str) -> bool:
    url = urlsplit(origin)
    try:
        is_local = ip_address(url.hostname or "").is_loopback
    except ValueError:
        is_local = url.hostname == "localhost"
    return url.scheme == "http" and not is_local


def _is_almost_everybody(value: str) -> bool:
    try:
        network = ip_network(value)
    except ValueError:
        return False
    # The largest private networks are 10.0.0.0/8 and fc00::/7.
    return network.prefixlen < {4: 8, 6: 7}[network.version]


class HttpSettings(Section):
    """What the service accepts over HTTP."""

    ALLOWED_ORIGINS: Annotated[
        CommaSeparated,
        _each(_is_origin, "an origin; write scheme://host[:port] in lower case, without a path"),
    ] = Field(
        default=[],
        description="Sites whose pages may call the API from a browser (CORS). Credentials are "
        "allowed for sites that are named, never for `*`.",
    )
    TRUSTED_HOSTS: Annotated[
        CommaSeparated,
        _each(_is_host, "a host; write api.example.com or *.example.com, without scheme or port"),
    ] = Field(
        default=["*"],
        min_length=1,
        description="Host names that the service answers to. The health probes answer to any, as "
        "orchestrators call them by address.",
    )
    TRUSTED_PROXIES: Annotated[
        CommaSeparated, _each(_is_proxy, "an IP address or a network such as 10.0.0.0/8, or unix")
    ] = Field(
        default=[],
        description="Addresses of the proxies whose X-Forwarded-For and X-Forwarded-Proto count; "
        "`unix` for whoever connects to a Unix socket that the service listens on.",
    )
    METRICS_NETWORKS: Annotated[
        CommaSeparated, _each(_is_network, "an IP address or a network such as 10.0.0.0/8")
    ] = Field(
        default=["127.0.0.0/8", "::1"],
        description="Networks from which `/metrics` may be read, straight and not through a proxy.",
    )
    MAX_BODY_SIZE: int = Field(
        default=1_048_576,
        gt=0,
        le=1_099_511_627_776,
        description="The largest request body, in bytes.",
    )
    REQUEST_TIMEOUT_SECONDS: float = Field(
        default=30, gt=0, le=3600, description="How long a request may take to start its answer."
    )
    HEAD_TIMEOUT_SECONDS: float = Field(
        default=10,
        ge=0.1,
        le=300,
        description="How long a client may take to send the head of a request.",
    )
    KEEP_ALIVE_SECONDS: float = Field(
        default=75,
        ge=0.1,
        le=3600,
        description="How long a connection may stay without a request; longer than a load balancer "
        "in front keeps it, or that sends requests to a closed one.",
    )
    MAX_CONNECTIONS: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000,
        description="How many connections a process holds; three quarters of the files that it may "
        "open (`ulimit -n`) at most.",
    )
    SEND_TIMEOUT_SECONDS: float = Field(
        default=30,
        ge=0.1,
        le=3600,
        description="How long a client may read nothing of what it is sent before its connection "
        "is dropped.",
    )

    def production_problems(self) -> Iterator[str]:
        """Refuse to let every site's pages call the API, and everybody say where they come from."""
        yield from super().production_problems()
        if "*" in self.ALLOWED_ORIGINS:
            yield "ALLOWED_ORIGINS: name the origins in production; `*` lets every site call"
        # Whoever is on the way can put a script of their own into a page without TLS.
        elif any(map(_is_plain, self.ALLOWED_ORIGINS)):
            yield "ALLOWED_ORIGINS: must be https:// in production, except on this machine"
        if any(map(_is_almost_everybody, self.TRUSTED_PROXIES)):
            yield "TRUSTED_PROXIES: name the proxies; whoever is one can claim any address"
        if any(map(_is_almost_everybody, self.METRICS_NETWORKS)):
            yield "METRICS_NETWORKS: name those of your monitoring; metrics tell strangers much"
