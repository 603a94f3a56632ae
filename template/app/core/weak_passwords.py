"""Passwords of servers that whoever attacks one tries first."""

import re
from functools import lru_cache

_WORDS = (
    "admin",
    "app",
    "changeit",
    "changeme",
    "changethis",
    "database",
    "db",
    "default",
    "example",
    "foobared",
    "guest",
    "hello",
    "iloveyou",
    "letmein",
    "login",
    "master",
    "monkey",
    "pass",
    "password",
    "prod",
    "production",
    "qwerty",
    "root",
    "secret",
    "test",
    "user",
    "welcome",
)
_LOOKALIKES = str.maketrans("013457@$", "oieastas")
_MIN_LENGTH = 8
_DIGITS = "01234567890" * 2


def is_easy_to_guess(password: str, *names: str) -> bool:
    """Whether a password is short, or well-known words and nothing else but digits and marks.

    `P@ssw0rd1`, `secret-2024` and `adminadmin` mean the same as the words themselves.

    Args:
        password: May be empty, which nobody has to guess.
        names: What else anybody knows, such as the names of the user and of the server's product.
    """
    if 0 < len(password) < _MIN_LENGTH:
        return True
    if password.isdecimal():
        return password in _DIGITS or password in _DIGITS[::-1] or len(set(password)) == 1
    words = tuple(sorted(_letters(name) for name in names))
    # What was put before or after a word is no part of it, and stands for no letter.
    core = re.sub(r"^[\W\d_]+|[\W\d_]+$", "", password.casefold())
    return bool(_pattern(words).fullmatch(_letters(core)))


def _letters(text: str) -> str:
    return re.sub(r"[\W\d_]", "", text.casefold().translate(_LOOKALIKES))


@lru_cache(maxsize=16)
def _pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"(?:{'|'.join(word for word in (*_WORDS, *names) if word)})+")
