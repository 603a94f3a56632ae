"""The words that give a feature away: none of them may be in a render that is without it."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.combinations import DATABASES, SWITCHES, Combination
from tests.snapshot import clean_files

# By a database's or a switch's word. Regular expressions, of any case; paths are searched, too.
VOCABULARY = {
    "postgresql": ("postgres", "asyncpg", "psycopg", "pgserver", r"\bpg_", "concurrently"),
    "sqlite": ("sqlite", "pragma", r"begin immediate", r"\bwal\b"),
    "redis": (r"(?<!use_)redis", "valkey", r"core[./]cache", "cache_ttl", "cached_orders"),
    "arq": (
        r"\barq\b",
        "outbox",
        r"dead.?letter",
        r"app[./]worker",
        r"just (worker|jobs)",
        # Of the SDK too.
        r"(?<!sdk\.trace\.)\bexports?\b",
    ),
    # Not "token", "password" and "bearer": keys, databases and any 401 have those.
    "jwt": (
        "(?<!use_)jwt",
        "argon2",
        "pwdlib",
        "secret_key",
        "signing.?key",
        r"(access|refresh).?token",
        r"\blog(s|ged|ging)? in\b",
        "log.?out",
        "create.?admin",
        "authenticator",
        r"core[./]security\b",
        r"(app|tests)[./](auth|users)\b",
    ),
    # Not "websocket": the middleware answers handshakes in any case.
    "websockets": (
        "realtime",
        r"\bfeeds?\b",
        r"\bhub\b",
        r"core[./]channels",
        "server-sent",
        "event.stream",
        "mailbox",
    ),
    "example": (
        r"\borders\b",
        r"\border_(lines?|id|router|service)\b",
        r"\border(line|placed|confirmed|cancelled|service|repository)",
        r"\bsku\b",
        "unit_price",
        "receipt",
        "customer_email",
    ),
}

# Of several features: given away where all of them are off.
SHARED = {frozenset({"example", "jwt"}): ("email.validator", r"core[./]email")}

# Features that do not exist yet: no render may promise them.
UNKNOWN = (
    r"(?<!without )\bdocker",
    "gunicorn",
    "kubernetes",
)


def forbidden_words(combination: Combination) -> tuple[str, ...]:
    """The regular expressions that must not match in a render of this combination."""
    known = (*DATABASES, *(switch.word for switch in SWITCHES))
    off = [word for word in known if word not in {combination.database, *combination.words}]
    shared = [SHARED[words] for words in SHARED if words.isdisjoint(combination.words)]
    own = [VOCABULARY[word] for word in off]
    return (*UNKNOWN, *(pattern for patterns in (*own, *shared) for pattern in patterns))


def leftovers(folder: Path, combination: Combination) -> Iterator[str]:
    """Every line, or path, that speaks of what is off, as `path:line: text`."""
    pattern = re.compile("|".join(forbidden_words(combination)), re.IGNORECASE)
    for name in clean_files(folder):
        if pattern.search(name):
            yield name
        text = (folder / name).read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), start=1):
            if pattern.search(line):
                yield f"{name}:{number}: {line.strip()}"
