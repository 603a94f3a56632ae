"""Refresh tokens as their clients hold them: opaque, 256 bits, stored as hashes."""

import hmac
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256

_BYTES = 32


def new_token() -> str:
    """Make the first token of a session."""
    return secrets.token_urlsafe(_BYTES)


def new_salt() -> bytes:
    """Make what a token's child is derived with."""
    return secrets.token_bytes(_BYTES)


def derive_child(token: str, salt: bytes) -> str:
    """Make a token's only child: whoever holds the parent gets the same one each time.

    So two refreshes of one client at the same time end with one token, whichever answer comes
    last, and a session never forks. Neither the database, which holds the salt, nor the parent
    alone leads to it: the salt is random, and as long as the token.
    """
    digest = hmac.digest(salt, token.encode(), "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def hash_token(token: str) -> str:
    """Hash a token for storing and finding it; no salt, as it is random and long."""
    return sha256(token.encode("utf-8", "replace")).hexdigest()
