"""Passwords: hashed with Argon2id in threads of their own, and refused when they are common."""

import re
import secrets
import unicodedata
from base64 import b64encode
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from anyio import CapacityLimiter, to_thread
from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher
from pydantic import Field

from app.core.fair_limiter import FairLimiter
from app.core.settings import Section

MIN_PASSWORD_LENGTH = 12
MAX_PASSWORD_LENGTH = 128

_SALT_BYTES = 16
_HASH_BYTES = 32
# What OWASP holds to be equally strong: by the number of passes, the memory. More passes than that
# make up for no less memory.
_LEAST_KIB = {1: 47_104, 2: 19_456, 3: 12_288, 4: 9_216, 5: 7_168}
_COMMON = Path(__file__).with_name("common_passwords.txt")
# What fingers find without thinking, forwards and backwards.
_ROWS = (
    "01234567890",
    "abcdefghijklmnopqrstuvwxyz",
    "qwertyuiop[]",
    "qwertzuiopü",
    "azertyuiop",
    "asdfghjkl;'",
    "zxcvbnm,./",
    "1qaz2wsx3edc4rfv5tgb6yhn7ujm8ik,9ol.0p;/",
    "1q2w3e4r5t6y7u8i9o0p",
    "q1w2e3r4t5y6u7i8o9p0",
    "!@#$%^&*()_+",
)
_MIN_RUN = 3
_MIN_DISTINCT = 5
_MIN_CONTEXT = 4
_REPEATED = re.compile(r"(.+?)\1{2,}", re.DOTALL)
_YEAR = re.compile(r"(19|20)\d\d")
_LOOKALIKES = str.maketrans("013457@$!", "oieastasi")


class PasswordSettings(Section):
    """What a hash costs; the defaults are those of RFC 9106 for servers with little memory.

    Except for the lanes: more than one would take the cores that other requests need, and make
    logins slower as soon as there are several at a time.
    Hashes that were made with other values stay good, and are replaced at their next login.
    """

    PASSWORD_HASH_MEMORY_KIB: int = Field(
        default=65_536, ge=8, le=4_194_304, description="Memory of one hash, in KiB."
    )
    PASSWORD_HASH_ITERATIONS: int = Field(
        default=3, ge=1, le=100, description="Passes over that memory."
    )
    PASSWORD_HASH_PARALLELISM: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Lanes of one hash, each a core while it is computed; memory must be 8 KiB for "
        "each.",
    )
    PASSWORD_HASH_CONCURRENCY: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Hashes that a process computes at once; each takes its memory and a core.",
    )
    PASSWORD_HASH_QUEUE_SIZE: int = Field(
        default=32,
        ge=0,
        le=10_000,
        description="Hashes that may wait for that. Networks take turns; beyond it logins, "
        "registrations and new passwords answer 503.",
    )

    def production_problems(self) -> Iterator[str]:
        """Refuse a hash that is cheap to try again, however memory and passes make it so."""
        yield from super().production_problems()
        passes = self.PASSWORD_HASH_ITERATIONS
        least = _LEAST_KIB[min(passes, max(_LEAST_KIB))]
        if least > self.PASSWORD_HASH_MEMORY_KIB:
            yield (
                f"PASSWORD_HASH_MEMORY_KIB: must be {least} at least in production with "
                f"PASSWORD_HASH_ITERATIONS={passes}"
            )


class Verified(NamedTuple):
    """Whether the password fits, and its hash with today's parameters if that is to be stored."""

    valid: bool
    new_hash: str | None = None


class Passwords:
    """Hashes and verifies passwords without stalling the event loop.

    Args:
        settings: What a hash costs, how many are computed at once, and how many wait.
    """

    def __init__(self, settings: PasswordSettings) -> None:
        # Argon2 refuses less than 8 KiB for a lane (RFC 9106, section 3.1).
        memory = max(settings.PASSWORD_HASH_MEMORY_KIB, 8 * settings.PASSWORD_HASH_PARALLELISM)
        hasher = Argon2Hasher(
            time_cost=settings.PASSWORD_HASH_ITERATIONS,
            memory_cost=memory,
            parallelism=settings.PASSWORD_HASH_PARALLELISM,
            hash_len=_HASH_BYTES,
            salt_len=_SALT_BYTES,
        )
        self._hash = PasswordHash((hasher,))
        self._turns = FairLimiter(
            settings.PASSWORD_HASH_CONCURRENCY, settings.PASSWORD_HASH_QUEUE_SIZE
        )
        # Apart from the threads of `offload`: logins must neither starve other work nor be starved.
        self._limiter = CapacityLimiter(settings.PASSWORD_HASH_CONCURRENCY)
        # Costs what a real one costs, and fits no password.
        self._nobodys_hash = (
            f"$argon2id$v=19$m={memory},t={settings.PASSWORD_HASH_ITERATIONS}"
            f",p={settings.PASSWORD_HASH_PARALLELISM}"
            f"${_unpadded(secrets.token_bytes(_SALT_BYTES))}"
            f"${_unpadded(secrets.token_bytes(_HASH_BYTES))}"
        )

    async def hash(self, password: str, network: str = "") -> str:
        """Hash a password for storing: the parameters, a random salt and the hash, in ASCII.

        Args:
            password: What somebody chose.
            network: Where it comes from; those that wait take turns by it.

        Raises:
            OverloadedError: too many hashes are to be computed already.
        """
        async with self._turns.turn(network):
            return await to_thread.run_sync(
                self._hash.hash, normalize_password(password), limiter=self._limiter
            )

    async def verify(self, password: str, password_hash: str | None, network: str = "") -> Verified:
        """Say whether the password is the one that was hashed.

        Args:
            password: What somebody typed.
            password_hash: The stored hash; without one, for an unknown user, the answer is no
                and takes as long.
            network: Where it comes from; those that wait take turns by it.

        Raises:
            OverloadedError: too many hashes are to be computed already.
        """
        async with self._turns.turn(network):
            return await to_thread.run_sync(
                self._verify, normalize_password(password), password_hash, limiter=self._limiter
            )

    def _verify(self, password: str, password_hash: str | None) -> Verified:
        # Half a character fits nothing, and takes as long as any other.
        typed = password.encode("utf-8", "surrogatepass")
        try:
            verified = self._hash.verify_and_update(typed, password_hash or self._nobodys_hash)
        except UnknownHashError:
            # An account that has no password, or one of another system.
            verified = self._hash.verify_and_update(typed, self._nobodys_hash)
        return Verified(*verified)


def normalize_password(password: str) -> str:
    """Make what different keyboards send for the same characters equal (NIST SP 800-63B, NFKC)."""
    return unicodedata.normalize("NFKC", password)


def weakness(password: str, context: Iterable[str] = ()) -> str | None:
    """Say why a password must not be used, for the person who chose it; `None` when it may.

    What is easy to guess is taken away: a common password or word, two if nothing parts them, names
    of the account, years, runs of the keyboard and repetitions. Too little may not be left. Two
    common words with something between them make a phrase and are let through; no kinds of
    characters are asked for (NIST SP 800-63B, section 5.1.1.2).

    The common ones are the 3,000 that are used most, without the digits and marks around them, and
    those of the 49,000 that are used most which are long enough (of zxcvbn-ts, under the MIT
    licence), in lower case.

    Args:
        password: What somebody chose.
        context: What others know about the account, such as its e-mail address and name.
    """
    text = normalize_password(password)
    if len(text) < MIN_PASSWORD_LENGTH:
        return f"should have at least {MIN_PASSWORD_LENGTH} characters"
    if len(text) > MAX_PASSWORD_LENGTH:
        return f"should have at most {MAX_PASSWORD_LENGTH} characters"
    known = {part for item in context for part in _parts(item.lower())}
    # Before and after: an address may hold a run, and a run may part a name.
    rest = _without(without_runs(_without(text.lower(), known)), known)
    for _ in range(2 if text.isalnum() else 1):
        rest = _without(rest, _longest_common_word(rest))
    if text.lower() in _common():
        rest = ""
    if len({character for character in rest if not character.isspace()}) < _MIN_DISTINCT:
        return "is too easy to guess: it is a common password, a name or a pattern"
    return None


def _parts(item: str) -> Iterator[str]:
    """An address or name, its local part, and its words, as far as they are long enough."""
    for part in (item, item.rpartition("@")[0], *re.split(r"[\W_]+", item)):
        if len(part) >= _MIN_CONTEXT:
            yield part


def _longest_common_word(text: str) -> set[str]:
    # Looked up piece by piece, as a look at every word would stall the event loop.
    common = _common()
    spellings = dict.fromkeys((text, text.translate(_LOOKALIKES)))
    shortest, longest = _common_lengths()
    for length in range(min(len(text), longest), shortest - 1, -1):
        for spelling in spellings:
            for start in range(len(spelling) - length + 1):
                if (word := spelling[start : start + length]) in common:
                    return {word}
    return set()


def _without(text: str, words: set[str]) -> str:
    for spelling in (text, text.translate(_LOOKALIKES)):
        found = [word for word in words if word in spelling]
        if found:
            # The longest first, as it may contain others.
            pattern = "|".join(map(re.escape, sorted(found, key=len, reverse=True)))
            return re.sub(pattern, "", spelling)
    return text


def without_runs(text: str) -> str:
    """Take away years, runs of the keyboard, and all but the first of what is repeated."""
    text = _YEAR.sub("", _REPEATED.sub(r"\1", text))
    kept: list[str] = []
    position = 0
    while position < len(text):
        length = _run_length(text[position:])
        if length <= _MIN_RUN:
            kept.append(text[position])
            length = 1
        position += length
    return "".join(kept)


def _run_length(text: str) -> int:
    longest = 0
    for row in (*_ROWS, *(row[::-1] for row in _ROWS)):
        while text[: longest + 1] in row and longest < len(text):
            longest += 1
    return longest


@lru_cache(maxsize=1)
def _common() -> frozenset[str]:
    return frozenset(_COMMON.read_text("utf-8").split())


@lru_cache(maxsize=1)
def _common_lengths() -> tuple[int, int]:
    lengths = set(map(len, _common()))
    return min(lengths), max(lengths)


def _unpadded(value: bytes) -> str:
    return b64encode(value).rstrip(b"=").decode()
