"""Whether a secret was made up by somebody, or comes from a random generator."""

import re
from typing import Final

from app.core.passwords import without_runs

# The commonest pairs of letters in English words, most of whose letters pair like that; of random
# letters a quarter does. No other two letters are next to each other here.
_PAIRS: Final = """
ab ac ad ag al am an ap ar as at au ay ba be bi bo br ca ce ch ci ck cl co cr ct cu da de
di do du ea ec ed ee el em en ep er es et ev ew ey fe fi fo fr ge gh go gr ha he hi ho ic
id ie if ig il im in io ir is it iv ke ki la ld le li ll lo ly ma me mi mo mp na nc nd ne
ng ni no ns nt ob oc od of ok ol om on oo op or os ot ou ov ow pa pe pl po pp pr ra rd re
ri rk rn ro rs rt ru ry sa sc se sh si so sp ss st su ta te th ti to tr ts tt tu ty uc ul
um un up ur us ut va ve vi wa we wh wi wo ye
"""
_LETTERS = re.compile(r"[a-z]{2,}", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s._-]+")
_TWICE = re.compile(r"(.{6,})\1+", re.DOTALL)
_WORD_SHARE = 0.6
# Of a word as people choose them, and of a character that is in none, in bits.
_WORD_BITS = 9
_CHARACTER_BITS = 4
_WORD_LENGTH = 8
_MIN_BITS = 70
_MIN_DISTINCT_CHARACTERS = 10
_PLACEHOLDERS = re.compile(
    r"change.?(me|this|it)|example|insecure|placeholder|your.{0,12}secret", re.IGNORECASE
)
# Random ones that documents of FastAPI and Flask print.
_PUBLISHED = (
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
    "192b9bdd22ab9ed4d12e236c78afcb9a393ec15f71bbf5dc987d54727823bcbf",
)


def looks_made_up(secret: str) -> bool:
    """Whether a secret is a placeholder, published, or made of words, runs and repetitions.

    What `openssl rand` and Python's `secrets` make of 32 bytes passes; of 10,000 random secrets of
    24 bytes one may not.
    """
    return (
        len(set(secret)) < _MIN_DISTINCT_CHARACTERS
        or bool(_PLACEHOLDERS.search(secret))
        or any(published in secret.lower() for published in _PUBLISHED)
        or _bits(secret) < _MIN_BITS
    )


def _bits(secret: str) -> float:
    text = without_runs(_TWICE.sub(r"\1", secret))
    words = sum(_word(letters[0]) for letters in _LETTERS.finditer(text))
    rest = _LETTERS.sub(lambda letters: "" if _word(letters[0]) else letters[0], text)
    return _WORD_BITS * words + _CHARACTER_BITS * len(_SEPARATORS.sub("", rest))


def _word(letters: str) -> float:
    """As how many words letters count; none if they are no words at all."""
    lower = letters.lower()
    pairs = [lower[at : at + 2] for at in range(len(lower) - 1)]
    share = sum(pair in _PAIRS for pair in pairs) / len(pairs)
    return max(1, len(letters) / _WORD_LENGTH) if share >= _WORD_SHARE else 0
