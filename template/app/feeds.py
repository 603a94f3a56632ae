"""Finds every app/*/feed.py: the one registry of the channels that clients may subscribe to."""

import pkgutil
from importlib import import_module
from types import ModuleType

import app
from app.core.channels import Channel
from app.core.events import EventBus


def feed_modules() -> list[ModuleType]:
    """Every module named `feed` of the domains, however deep."""
    names = [module.name for module in pkgutil.walk_packages(app.__path__, "app.")]
    return [import_module(name) for name in names if name.endswith(".feed")]


def find_channels() -> dict[str, Channel]:
    """Every channel that a feed declares, by name.

    Raises:
        ValueError: two have the same name.
    """
    channels: dict[str, Channel] = {}
    for module in feed_modules():
        for channel in vars(module).values():
            if (
                isinstance(channel, Channel)
                and channels.setdefault(channel.name, channel) != channel
            ):
                raise ValueError(f"two channels are called {channel.name}")
    return channels


def subscribe_feeds(events: EventBus) -> None:
    """Have each feed publish what happens in its domain."""
    for module in feed_modules():
        module.subscribe(events)
