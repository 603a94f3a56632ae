"""The environment: what is read, what is refused, and that no secret is ever shown."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import field_validator

from app.core.settings import Environment
from app.settings import InvalidSettingsError, Settings, load_settings

SetEnvironment = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str
) -> SetEnvironment:
    """An environment in which the service can start; tests add to it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)

    def set_environment(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


def refusal() -> str:
    """The message with which the environment is refused."""
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings()
    return str(refused.value)


def test_the_defaults_are_those_of_development() -> None:
    settings = load_settings()
    assert settings.ENVIRONMENT is Environment.DEVELOPMENT
    assert not settings.DEBUG
    assert settings.LOG_LEVEL == "INFO"
    assert settings.MAX_BODY_SIZE == 1_048_576
    assert settings.REQUEST_TIMEOUT_SECONDS == 30
    assert settings.ALLOWED_ORIGINS == []
    assert settings.TRUSTED_HOSTS == ["*"]
    assert not settings.is_production


@pytest.mark.parametrize(
    "value",
    [
        "https://a.example,https://b.example",
        " https://a.example , https://b.example, ",
        '["https://a.example", "https://b.example"]',
    ],
)
def test_a_list_is_read_as_json_or_separated_by_commas(
    environment: SetEnvironment, value: str
) -> None:
    environment(ALLOWED_ORIGINS=value)
    assert load_settings().ALLOWED_ORIGINS == ["https://a.example", "https://b.example"]


def test_an_empty_list_is_empty(environment: SetEnvironment) -> None:
    environment(ALLOWED_ORIGINS="")
    assert load_settings().ALLOWED_ORIGINS == []


def test_the_file_is_read_and_its_unknown_names_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("APP_NAME=Shop\nSOMEONE_ELSES=1\nallowed_origins=http://a.b\n")
    settings = load_settings()
    assert settings.APP_NAME == "Shop"
    assert settings.ALLOWED_ORIGINS == ["http://a.b"]


def test_the_environment_goes_before_the_file(environment: SetEnvironment, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("APP_NAME=File\n")
    environment(APP_NAME="Environment")
    assert load_settings().APP_NAME == "Environment"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("LOG_LEVEL", "loud", "'DEBUG', 'INFO', 'WARNING', 'ERROR' or 'CRITICAL'"),
        ("ENVIRONMENT", "staging", "'development', 'test' or 'production'"),
        ("MAX_BODY_SIZE", "1MB", "valid integer"),
        ("REQUEST_TIMEOUT_SECONDS", "0", "greater than 0"),
        ("ALLOWED_ORIGINS", "https://a.example/path", "entry 1 is not an origin"),
        ("ALLOWED_ORIGINS", "[https://a.example", "cannot be read"),
        ("ALLOWED_ORIGINS", "[" * 100_000, "cannot be read"),
        ("ALLOWED_ORIGINS", "[1]", "must be a list of strings"),
        ("TRUSTED_PROXIES", "10.0.0.0/8,10.0.0.1/99", "entry 2 is not an IP address or a network"),
        ("TRUSTED_HOSTS", "https://a.example", "entry 1 is not a host"),
        ("DEBUG", "perhaps", "valid boolean"),
    ],
)
def test_a_bad_variable_gets_one_line_that_says_what_is_expected(
    environment: SetEnvironment, variable: str, value: str, expected: str
) -> None:
    environment(**{variable: value})
    [line] = refusal().splitlines()
    assert line.startswith(f"{variable}: ")
    assert expected in line


def test_every_number_has_a_largest_value() -> None:
    for name, schema in Settings.model_json_schema()["properties"].items():
        if schema.get("type") in {"integer", "number"}:
            assert schema.keys() & {"maximum", "exclusiveMaximum"}, name


def test_every_bad_variable_is_reported_at_once(environment: SetEnvironment) -> None:
    environment(LOG_LEVEL="loud", MAX_BODY_SIZE="large", DEBUG="perhaps")
    variables = {line.partition(":")[0] for line in refusal().splitlines()}
    assert variables == {"LOG_LEVEL", "MAX_BODY_SIZE", "DEBUG"}


@pytest.mark.parametrize(
    "url",
    [
        "user:pa[hunter2]@db.internal/shop",
        "user:hunter2/shop",
        "user:hunter2\uff1a@db.internal:x/shop",
    ],
)
def test_a_secret_is_never_shown(environment: SetEnvironment, url: str) -> None:
    scheme = os.environ["DATABASE_URL"].partition("://")[0]
    environment(DATABASE_URL=f"{scheme}://{url}")
    message = refusal()
    assert message.startswith("DATABASE_URL: ")
    assert "hunter2" not in message


def test_what_an_error_of_others_says_is_withheld(
    environment: SetEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Careless(Settings):
        @field_validator("APP_NAME")
        @classmethod
        def _check(cls, value: str) -> str:
            int(value)
            return value

    monkeypatch.setattr("app.settings.Settings", Careless)
    environment(APP_NAME="hunter2")
    assert refusal() == "APP_NAME: is not valid"


def test_a_refusal_has_no_trace_of_its_cause(environment: SetEnvironment) -> None:
    # The cause is pydantic's error, which keeps the values.
    environment(DATABASE_URL="mysql://user:hunter2@db.internal/shop")
    with pytest.raises(InvalidSettingsError) as refused:
        load_settings()
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_the_settings_do_not_print_their_secrets(environment: SetEnvironment) -> None:
    settings = load_settings()
    url = settings.DATABASE_URL.get_secret_value()
    assert url not in repr(settings)
    assert url not in str(settings.model_dump())


def test_production_lists_everything_that_it_refuses(environment: SetEnvironment) -> None:
    environment(ENVIRONMENT="production", DEBUG="true", ALLOWED_ORIGINS="*")
    variables = [line.partition(":")[0] for line in refusal().splitlines()]
    assert variables.count("DEBUG") == 1
    assert variables.count("ALLOWED_ORIGINS") == 1


def test_production_starts_with_named_origins(environment: SetEnvironment) -> None:
    environment(ENVIRONMENT="production", ALLOWED_ORIGINS="https://a.example")
    assert load_settings().is_production


def test_settings_cannot_be_changed_while_the_service_runs() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.DEBUG = True  # type: ignore[misc]


def test_every_variable_can_be_set_from_the_environment() -> None:
    assert all(name.isupper() for name in Settings.model_fields)


@pytest.mark.parametrize("from_file", [True, False])
def test_an_empty_variable_is_as_good_as_none(
    environment: SetEnvironment,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    from_file: bool,
) -> None:
    """Compose makes one of `${NAME:-}`."""
    names = Settings.model_fields.keys() - {"DATABASE_URL"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    defaults = load_settings()
    if from_file:
        (tmp_path / ".env").write_text("".join(f"{name}=\n" for name in names))
    else:
        environment(**dict.fromkeys(names, ""))
    settings = load_settings()
    assert settings.model_fields_set == {"DATABASE_URL"}
    assert settings == defaults


def test_an_empty_variable_leaves_the_one_of_the_file(
    environment: SetEnvironment, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("APP_NAME=File\n")
    environment(APP_NAME="")
    assert load_settings().APP_NAME == "File"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("'p${a}w$b'", "p${a}w$b"),
        ("'it\\'s ${APP}'", "it's ${APP}"),
        ('"p${APP}w"', "pShopw"),
        ("p${APP}w", "pShopw"),
        ('"${LITERAL}"', "$x${APP}"),
        ("p${NOWHERE:-a}w # why", "paw"),
    ],
)
def test_the_file_is_read_as_a_shell_would(tmp_path: Path, written: str, expected: str) -> None:
    lines = ["APP=Shop", "LITERAL='$x${APP}'", f"APP_NAME={written}", ""]
    (tmp_path / ".env").write_text("\n".join(lines))
    settings = load_settings()
    assert expected == settings.APP_NAME


@pytest.mark.parametrize(
    "line",
    ["TRUSTED_HOSTS api.example.com", "TRUSTED_HOSTS", "APP_NAME='hunter2", 'APP_NAME="a" hunter2'],
)
def test_a_line_that_cannot_be_read_stops_the_start(tmp_path: Path, line: str) -> None:
    (tmp_path / ".env").write_text(f"# The first.\nDEBUG=false\n\n{line}\nLOG_LEVEL=INFO\n")
    assert refusal() == ".env: line 4: write NAME=value, and close every quote"


def test_a_folder_in_its_place_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").mkdir()
    assert refusal() == ".env: is a folder; make it a file, or take it away"


def test_a_file_in_another_encoding_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes("APP_NAME=Bücher".encode("utf-16"))
    assert refusal() == ".env: cannot be read; it must be a text in UTF-8"


def test_a_file_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfAPP_NAME=Shop\r\nDEBUG=true\r\n")
    settings = load_settings()
    assert (settings.APP_NAME, settings.DEBUG) == ("Shop", True)
