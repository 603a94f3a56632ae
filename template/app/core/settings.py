"""What the settings sections share: the environment's name, lists, and the production guard."""

import json
from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field
from pydantic_settings import NoDecode


class Environment(StrEnum):
    """Where the process runs; `production` refuses settings that are only fit for development."""

    DEVELOPMENT = "development"
    TEST = "test"
    PRODUCTION = "production"


class SettingError(ValueError):
    """A variable's value cannot be used; validators of settings raise it.

    The message is shown, so it must not quote the value. That of any other `ValueError` is
    withheld: those of the standard library quote what they were given.
    """


def split_list(value: Any) -> Any:
    """Split what came as text; anything else is left to pydantic.

    Raises:
        SettingError: it looks like JSON and is no list of strings.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            message = 'looks like JSON but cannot be read; write a,b or ["a", "b"]'
            raise SettingError(message) from None
        if not all(isinstance(item, str) for item in items):
            message = 'must be a list of strings; write a,b or ["a", "b"]'
            raise SettingError(message)
        return items
    return [item.strip() for item in text.split(",") if item.strip()]


# NoDecode keeps pydantic-settings from insisting on JSON before the validator has seen the text.
CommaSeparated = Annotated[list[str], NoDecode, BeforeValidator(split_list)]
"""A list of strings given as JSON (`["a", "b"]`) or comma-separated (`a,b`)."""


class Section(BaseModel):
    """The settings of one resource; field names are the environment variables' names."""

    def production_problems(self) -> Iterator[str]:
        """Yield one `VARIABLE: what to do` line for each value that production must refuse.

        Sections override this and yield from `super()` first, so that `Settings`, which inherits
        every section, reports all of them at once.
        """
        yield from ()


class AppSettings(Section):
    """What concerns the process as a whole."""

    ENVIRONMENT: Environment = Environment.DEVELOPMENT
    APP_NAME: str = Field(default="app", min_length=1)
    DEBUG: bool = Field(default=False, description="Log every SQL statement.")
    SHUTDOWN_TIMEOUT_SECONDS: float = Field(
        default=30, gt=0, le=3600, description="How long work in flight may take to finish at exit."
    )
    SHUTDOWN_DRAIN_SECONDS: float = Field(
        default=0,
        ge=0,
        le=600,
        description="How long to keep serving, with readiness at 503, after SIGTERM: the time that "
        "the load balancer needs to notice.",
    )

    @property
    def is_production(self) -> bool:
        """Whether the process serves real users."""
        return self.ENVIRONMENT is Environment.PRODUCTION

    def production_problems(self) -> Iterator[str]:
        yield from super().production_problems()
        if self.DEBUG:
            yield "DEBUG: must be off in production; it logs every SQL statement"
