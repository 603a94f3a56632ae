"""Preconditions by RFC 9110, sections 8.8 and 13."""

from collections.abc import Sequence

import pytest
from fastapi import Request

from app.core.conditional import Preconditions, etag, get_preconditions
from app.core.errors import PreconditionFailedError

CURRENT = etag("id", 3)


async def read(*headers: tuple[str, str]) -> Preconditions:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return await get_preconditions(Request({"type": "http", "headers": raw}))


def test_an_etag_is_a_quoted_strong_tag_that_changes_with_every_part() -> None:
    assert CURRENT.startswith('"')
    assert CURRENT.endswith('"')
    assert len({CURRENT, etag("id", 4), etag("other", 3), etag("id3")}) == 4


async def test_a_write_without_if_match_is_not_restricted() -> None:
    (await read()).require_match(CURRENT)


@pytest.mark.parametrize(
    "value",
    [
        CURRENT,
        f'"older", {CURRENT}',
        f'"a,b",{CURRENT} , "c"',
        f", {CURRENT},,",
        f'W/"older", {CURRENT}',
        "*",
        " * ",
    ],
)
async def test_a_write_passes_when_if_match_names_the_current_tag(value: str) -> None:
    (await read(("if-match", value))).require_match(CURRENT)


@pytest.mark.parametrize(
    "value",
    [
        '"older"',
        f"W/{CURRENT}",
        CURRENT.strip('"'),
        "",
        ",",
        f"{CURRENT} {CURRENT}",
        f'{CURRENT}, "unterminated',
        f"nonsense {CURRENT}",
        f"*, {CURRENT}",
        f"w/{CURRENT}",
        '"\u00fc"',
    ],
)
async def test_a_stale_weak_or_malformed_if_match_refuses_the_write(value: str) -> None:
    preconditions = await read(("if-match", value))
    with pytest.raises(PreconditionFailedError):
        preconditions.require_match(CURRENT)


async def test_several_header_lines_are_one_list() -> None:
    (await read(("if-match", '"older"'), ("if-match", CURRENT))).require_match(CURRENT)


@pytest.mark.parametrize("value", [CURRENT, f"W/{CURRENT}", f'"older", {CURRENT}', "*"])
async def test_a_reader_that_is_up_to_date_gets_304_with_the_tag(value: str) -> None:
    response = (await read(("if-none-match", value))).not_modified(CURRENT)
    assert response is not None
    assert response.status_code == 304
    assert response.headers["etag"] == CURRENT
    assert response.body == b""


@pytest.mark.parametrize("headers", [[], ['"older"'], ['W/"older"'], [CURRENT[:-1]], [""]])
async def test_any_other_reader_gets_the_representation(headers: Sequence[str]) -> None:
    preconditions = await read(*(("if-none-match", value) for value in headers))
    assert preconditions.not_modified(CURRENT) is None


async def test_a_long_malformed_header_is_read_in_no_time() -> None:
    # A backtracking pattern would take years for either.
    await read(("if-match", '"a",' * 20_000 + "x"))
    await read(("if-match", ", \t" * 20_000 + "x"))


@pytest.mark.parametrize("value", [CURRENT, f"W/{CURRENT}", f'"older", {CURRENT}', "*"])
async def test_a_write_that_if_none_match_excludes_is_refused(value: str) -> None:
    preconditions = await read(("if-none-match", value))
    with pytest.raises(PreconditionFailedError):
        preconditions.require_match(CURRENT)
