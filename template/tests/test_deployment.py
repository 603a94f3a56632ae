"""What deploy/ says fits the settings that it runs with."""

from dotenv import dotenv_values

from app.settings import Settings
from devtools import deployment


def test_grace_periods_and_probes_fit_the_settings() -> None:
    files = list(deployment.current())
    assert files
    outdated = [path.name for path, text in files if path.read_text() != text]
    assert outdated == [], "run `uv run python -m devtools.deployment`"


def test_only_settings_that_exist_are_set() -> None:
    for file in deployment.settings_files():
        unknown = dotenv_values(file).keys() - Settings.model_fields.keys()
        assert unknown == set(), file
