"""`.env.example` can be trusted: it has every setting, with the default that the code has."""

import re
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app.settings import Settings

_FILE = Path(__file__).parents[1] / ".env.example"
# A line that is commented out names a setting whose default depends on the machine.
_SETTING = re.compile(r"^(?:# )?([A-Z][A-Z_]+)=", re.MULTILINE)


def test_every_setting_is_there_once() -> None:
    assert sorted(_SETTING.findall(_FILE.read_text())) == sorted(Settings.model_fields)


def test_its_values_are_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    written = Settings(_env_file=_FILE)
    defaults = Settings(_env_file=None)

    named = {name for name, value in dotenv_values(_FILE).items() if value}
    assert written.model_fields_set == named
    assert written.model_dump() == defaults.model_dump()
