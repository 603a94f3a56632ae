"""The API as it was agreed on: one snapshot of the OpenAPI schema for each tag."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings

TESTS = Path(__file__).parents[1] / "tests"
_REFERENCE = "#/components/schemas/"


def main() -> None:
    """Write the snapshots of all tags, and delete those of tags that are gone."""
    wanted = snapshots(create_app(Settings(_env_file=None)))
    for file in stored(TESTS).keys() - wanted.keys():
        snapshot_file(TESTS, file).unlink()
    for tag, text in wanted.items():
        file_of_tag = snapshot_file(TESTS, tag)
        file_of_tag.parent.mkdir(exist_ok=True)
        file_of_tag.write_text(text, encoding="utf-8")
        print(file_of_tag.relative_to(TESTS.parent))


def snapshot_file(tests: Path, tag: str) -> Path:
    """Where the snapshot of a tag is kept: beside the tests of its domain."""
    return tests / tag / "openapi.json"


def stored(tests: Path) -> dict[str, str]:
    """The snapshots that are there, by tag."""
    files = tests.glob("*/openapi.json")
    return {file.parent.name: file.read_text(encoding="utf-8") for file in files}


def snapshots(app: FastAPI) -> dict[str, str]:
    """What the snapshot of each tag must be.

    Who may call an operation is left out: that is decided where routers are mounted, for all
    domains at once.
    """
    schema = app.openapi()
    tags: dict[str, dict[str, Any]] = {}
    for path, method, operation in operations(schema):
        shown = {key: value for key, value in operation.items() if key != "security"}
        for tag in operation.get("tags", ()):
            tags.setdefault(tag, {}).setdefault(path, {})[method] = shown
    schemas = schema.get("components", {}).get("schemas", {})
    return {
        tag: json.dumps(
            {"paths": paths, "schemas": {name: schemas[name] for name in _used(paths, schemas)}},
            indent=2,
            sort_keys=True,
            ensure_ascii=False,
        )
        + "\n"
        for tag, paths in tags.items()
    }


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each operation of a schema with its path and its method."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _used(part: Any, schemas: dict[str, Any]) -> set[str]:
    """The names of the schemas that `part` refers to, directly or through others."""
    found: set[str] = set()
    pending = [part]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            reference = part.get("$ref")
            if isinstance(reference, str):
                name = reference.removeprefix(_REFERENCE)
                if name not in found:
                    found.add(name)
                    pending.append(schemas[name])
            pending.extend(part.values())
        elif isinstance(part, list):
            pending.extend(part)
    return found


if __name__ == "__main__":
    main()
