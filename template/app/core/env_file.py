"""How `.env` is read: as a shell reads it, and as a whole or not at all."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from dotenv.main import resolve_variables
from dotenv.parser import Binding, parse_stream
from pydantic_settings import DotEnvSettingsSource

from app.core.settings import SettingError

# Stands for a `$` that is only a character; no environment variable can hold it.
_LITERAL = "\0"


class EnvFileSource(DotEnvSettingsSource):
    """Refuses a line that cannot be read, and takes what is in single quotes literally.

    python-dotenv leaves out such a line, so that the default would count, and replaces `${NAME}`
    in single quotes as well, so that a secret would differ from the same one in the environment.
    """

    def _read_env_files(self) -> Mapping[str, str | None]:
        # What a container gets where the file that it mounts is missing.
        if Path(str(self.env_file)).is_dir():
            message = f"{self.env_file}: is a folder; make it a file, or take it away"
            raise SettingError(message)
        return super()._read_env_files()

    def _read_env_file(self, file_path: Path) -> Mapping[str, str | None]:
        """Read the variables of a file, their names in small letters.

        Raises:
            SettingError: some lines cannot be read.
        """
        # Some editors write a mark in front.
        with file_path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
        # What sets nothing was meant to; only comments and empty lines have no name either.
        if bad := [_line(it) for it in bindings if it.error or (it.key and it.value is None)]:
            expected = "write NAME=value, and close every quote"
            raise SettingError("\n".join(f"{file_path}: line {n}: {expected}" for n in bad))
        values = resolve_variables(_pairs(bindings), override=True)
        return {
            name.lower(): value.replace(_LITERAL, "$")
            for name, value in values.items()
            # An empty one is as good as none, as in the environment.
            if value
        }


def _pairs(bindings: list[Binding]) -> Iterator[tuple[str, str | None]]:
    for binding in bindings:
        if binding.key and binding.value is not None:
            is_literal = binding.original.string.partition("=")[2].lstrip().startswith("'")
            yield binding.key, binding.value.replace("$", _LITERAL) if is_literal else binding.value


def _line(binding: Binding) -> int:
    text = binding.original.string
    # It begins with the empty lines above.
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
