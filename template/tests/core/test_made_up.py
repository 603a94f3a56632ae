"""Secrets that somebody has made up, whatever their length; and those of generators."""

import base64
import secrets

import pytest

from app.core.made_up import looks_made_up


@pytest.mark.parametrize(
    "secret",
    [
        "my-service-production-secret-key-1",
        "MySuperSecretKeyForProduction2026!!",
        "supersecretproductionkeysupersecretproductionkey",
        "acme-billing-live-signing-token-v2-2026",
        "correct horse battery staple and more words",
        "abcdefghijklmnopqrstuvwxyz0123456789",
        "0123456789abcdef0123456789abcdef",
        "qwertyuiopasdfghjklzxcvbnm1234567890",
        "f2c8a1d4906b7e35f2c8a1d4906b7e35",
        "DjangoInsecure#2024!ProductionServer$Key",
        "a1b2" * 16,
        "your-256-bit-secret-your-256-bit-secret",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
        "",
    ],
)
def test_words_runs_repetitions_and_what_documents_print_are_made_up(secret: str) -> None:
    assert looks_made_up(secret)


def test_what_generators_make_passes() -> None:
    for _ in range(500):
        assert not looks_made_up(secrets.token_hex(32))
        assert not looks_made_up(secrets.token_urlsafe(32))
        assert not looks_made_up(base64.b64encode(secrets.token_bytes(32)).decode())
