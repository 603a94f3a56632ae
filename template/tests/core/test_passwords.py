"""Passwords: how they are hashed and verified, and which are refused."""

import threading
import time
from typing import Any

import anyio
import pytest
from pwdlib import PasswordHash

from app.core.passwords import MIN_PASSWORD_LENGTH, Passwords, PasswordSettings, _common, weakness

CHEAP: dict[str, Any] = {
    "PASSWORD_HASH_MEMORY_KIB": 8,
    "PASSWORD_HASH_ITERATIONS": 1,
    "PASSWORD_HASH_PARALLELISM": 1,
}


def passwords(**settings: Any) -> Passwords:
    return Passwords(PasswordSettings(**{**CHEAP, **settings}))


async def test_only_the_password_that_was_hashed_fits() -> None:
    hasher = passwords()
    stored = await hasher.hash("bernoulli numbers")
    assert "bernoulli" not in stored
    assert await hasher.verify("bernoulli numbers", stored) == (True, None)
    assert await hasher.verify("bernoulli number", stored) == (False, None)
    assert await hasher.verify("", stored) == (False, None)


async def test_half_a_character_fits_nothing() -> None:
    hasher = passwords()
    for stored in (await hasher.hash("bernoulli numbers"), None):
        assert await hasher.verify("bernoulli numbers\ud800", stored) == (False, None)


async def test_the_same_password_is_hashed_differently_each_time() -> None:
    hasher = passwords()
    assert await hasher.hash("bernoulli numbers") != await hasher.hash("bernoulli numbers")


async def test_the_default_is_argon2id_with_64_mib() -> None:
    stored = await Passwords(PasswordSettings()).hash("bernoulli numbers")
    assert stored.startswith("$argon2id$v=19$m=65536,t=3,p=1$")


async def test_nobody_has_no_password_and_costs_as_much_as_somebody() -> None:
    hasher = passwords(PASSWORD_HASH_ITERATIONS=2)
    assert await hasher.verify("bernoulli numbers", None) == (False, None)
    somebodys = await hasher.hash("bernoulli numbers")
    # Algorithm, version and parameters; and salts and hashes of the same length.
    assert hasher._nobodys_hash.split("$")[:4] == somebodys.split("$")[:4]
    assert len(hasher._nobodys_hash) == len(somebodys)


@pytest.mark.parametrize("stored", ["", "!", "$2b$12$abcdefghijklmnopqrstuv", "$argon2id$v=19$m=8"])
async def test_a_hash_that_is_none_of_ours_fits_nothing(stored: str) -> None:
    assert await passwords().verify("", stored) == (False, None)
    assert await passwords().verify("bernoulli numbers", stored) == (False, None)


async def test_a_hash_with_other_parameters_is_replaced_when_its_password_is_there() -> None:
    stored = await passwords().hash("bernoulli numbers")
    stronger = passwords(PASSWORD_HASH_ITERATIONS=2)
    assert await stronger.verify("bernoulli number", stored) == (False, None)
    valid, replacement = await stronger.verify("bernoulli numbers", stored)
    assert valid
    assert replacement is not None
    assert await stronger.verify("bernoulli numbers", replacement) == (True, None)


async def test_characters_may_be_typed_in_several_ways() -> None:
    hasher = passwords()
    stored = await hasher.hash("Zoe\u0308 \ufb01nds caf\u00e9s")
    assert (await hasher.verify("Zo\u00eb finds cafe\u0301s", stored)).valid


async def test_as_many_hashes_at_once_as_the_setting_says(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def slow(*_: Any) -> str:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1
        return "hash"

    monkeypatch.setattr(PasswordHash, "hash", slow)
    hasher = passwords(PASSWORD_HASH_CONCURRENCY=2)
    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(hasher.hash, "bernoulli numbers")
    assert most == 2


@pytest.mark.parametrize(
    "password",
    [
        "password1234",
        "Passw0rd2024!",
        "password1987!",
        "P@$$w0rd!P@$$w0rd!",
        "qwertyuiop12",
        "qwertzuiop12",
        "1qaz2wsx3edc",
        "1q2w3e4r5t6y",
        "poiuytrewq21",
        "asdfghjkl123",
        "!@#$%^&*()_+",
        "123456789012",
        "210987654321",
        "abcdefghijkl",
        "aaaaaaaaaaaa",
        "abababababab",
        "abcabcabcabc",
        "qqqwwweeerrrtttyyy",
        "Summer2024!!",
        "letmeinletmein",
        "iloveyou12345",
        "contraseña2020",
        "unbelievable",
        "Manchester12",
        "123qweasdzxc",
        "zaq12wsxcde3",
        "correcthorsebatterystaple",
        # As an Asian keyboard may write it.
        "".join(chr(ord(character) + 0xFEE0) for character in "PASSWORD1234"),
        "            ",
        "password    ",
    ],
)
def test_what_is_guessed_first_is_refused(password: str) -> None:
    assert "easy to guess" in (weakness(password) or "")


@pytest.mark.parametrize(
    "password",
    [
        "countess1815!",
        "Ada.Lovelace1",
        "lovelace-2024",
        "ADALOVELACE!!",
        "ada@lovelace.example",
        "l0vel4ce-1815!",
    ],
)
def test_what_others_know_of_the_account_is_refused(password: str) -> None:
    known = ("Countess@example.com", "Ada Lovelace")
    assert "easy to guess" in (weakness(password, known) or "")


@pytest.mark.parametrize(
    ("address", "password"),
    [
        ("al@abc.co.uk", "al@abc.co.uk"),
        ("al@abc.co.uk", "AL@abc.co.uk1"),
        ("al.bo-cy_de.fy@example.com", "al.bo-cy_de.fy"),
        ("1234567a@bcd.io", "1234567a@bcd.io"),
    ],
)
def test_an_address_of_short_words_is_known_as_a_whole(address: str, password: str) -> None:
    assert "easy to guess" in (weakness(password, (address,)) or "")
    assert weakness(password, ("ada@example.com",)) is None


@pytest.mark.parametrize(
    "password",
    [
        "bernoulli numbers by engine",
        "correct horse battery staple",
        "x9$kQ2!mZ7&p",
        "8273649182734",
        "password of mine, zero to hero",
        # Two common words make a phrase.
        "my-secret-password",
        "test-password-123",
        "密码是一个很长很长的句子呢",
        "🦊🐝🦉🐢🦔🐙🦋🐳🦁🐧🦒🐘",
    ],
)
def test_what_is_hard_to_guess_is_accepted_whatever_it_is_made_of(password: str) -> None:
    assert weakness(password, ("ada.lovelace@example.com", "Ada Lovelace")) is None


def test_the_length_counts_after_normalization() -> None:
    assert "at least 12" in (weakness("x9$kQ2!mZ7&") or "")
    # One character each for somebody who types them, and three for everybody else.
    assert "at most 128" in (weakness("\ufb03" * 43) or "")
    assert "at most 128" in (weakness("x9$kQ2!mZ7&p" * 11) or "")


@pytest.mark.parametrize("password", ["ab" * 64, "a" * 127 + "b", "aab" * 42, "abcdefgh" * 16])
def test_the_check_of_a_long_password_does_not_stall_the_process(password: str) -> None:
    start = time.process_time()
    weakness(password)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("memory", "iterations", "accepted"),
    [
        (65_536, 3, True),
        (47_104, 1, True),
        (7_168, 5, True),
        (7_168, 50, True),
        (8, 1, False),
        (19_456, 1, False),
        (4_096, 100, False),
    ],
)
def test_production_refuses_hashes_that_are_cheap_to_try(
    memory: int, iterations: int, accepted: bool
) -> None:
    settings = PasswordSettings(
        PASSWORD_HASH_MEMORY_KIB=memory, PASSWORD_HASH_ITERATIONS=iterations
    )
    assert (not list(settings.production_problems())) is accepted


@pytest.mark.parametrize(
    "password",
    ["michaeljordan", "letmeinplease", "MichaelJordan23", "M1chaelJ0rdan", "iloveyouforever"],
)
def test_two_common_words_that_nothing_parts_are_refused(password: str) -> None:
    assert "easy to guess" in (weakness(password) or "")


def test_each_common_password_that_is_long_enough_is_refused_however_it_is_typed() -> None:
    long = [word for word in _common() if len(word) >= MIN_PASSWORD_LENGTH]
    assert len(_common()) > 2800
    assert len(long) > 190
    for word in long:
        assert weakness(word), word
        assert weakness(word.upper()), word


async def test_a_hash_that_is_none_of_ours_costs_as_much_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hasher = passwords()
    computed: list[str | bytes] = []
    verify = PasswordHash.verify_and_update

    def note(self: PasswordHash, password: str | bytes, hash: str | bytes) -> Any:  # noqa: A002
        result = verify(self, password, hash)
        # Not for one that is not even known.
        computed.append(hash)
        return result

    monkeypatch.setattr(PasswordHash, "verify_and_update", note)
    assert await hasher.verify("bernoulli numbers", "!") == (False, None)
    assert computed == [hasher._nobodys_hash]
