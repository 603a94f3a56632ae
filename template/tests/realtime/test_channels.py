"""Channels: what may be published on them, where it goes, and how they are found."""

from types import ModuleType
from typing import ClassVar

import pytest

from app import feeds
from app.core.channels import Channel, Message
from app.core.principal import ANONYMOUS


class Lent(Message):
    name: ClassVar[str] = "book.lent"

    title: str


class Returned(Message):
    name: ClassVar[str] = "book.returned"


PUBLIC = Channel("books", messages=(Lent,))
PRIVATE = Channel("books", messages=(Lent,), is_private=True)


def test_only_what_a_channel_carries_can_be_published() -> None:
    published = PUBLIC.publication(Lent(title="Emma"))
    assert (published.topic, published.event) == ("books", "book.lent")
    with pytest.raises(ValueError, match="carries no Returned"):
        PUBLIC.publication(Returned())


def test_exactly_private_channels_have_a_recipient() -> None:
    assert PRIVATE.publication(Lent(title="Emma"), to="ada").topic == PRIVATE.topic("ada")
    with pytest.raises(ValueError, match="recipient"):
        PRIVATE.publication(Lent(title="Emma"))
    with pytest.raises(ValueError, match="recipient"):
        PUBLIC.publication(Lent(title="Emma"), to="ada")


def test_no_principal_can_name_the_topic_of_another() -> None:
    assert PRIVATE.topic("a:b") != PRIVATE.topic("a") + ":b"
    assert PUBLIC.topic("ada") == PUBLIC.topic("bob")
    assert PUBLIC.allows(ANONYMOUS)


def test_two_channels_cannot_have_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("feed")
    vars(module).update(one=PUBLIC, again=PUBLIC)
    monkeypatch.setattr(feeds, "feed_modules", lambda: [module])
    assert feeds.find_channels() == {"books": PUBLIC}
    vars(module).update(two=PRIVATE)
    with pytest.raises(ValueError, match="two channels are called books"):
        feeds.find_channels()
