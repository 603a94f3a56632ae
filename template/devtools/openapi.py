"""The API as it was agreed on: snapshots of the OpenAPI schema for each tag."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from app.main import create_app
from app.settings import Settings

TESTS = Path(__file__).parents[1] / "tests"
_OPERATIONS = "openapi.json"
_SECURITY = "security.json"
_REFERENCE = "#/components/schemas/"


def main() -> None:
    """Write the snapshots of all tags, and delete those of tags that are gone."""
    wanted = snapshots(create_app(Settings(_env_file=None)))
    for name in stored(TESTS).keys() - wanted.keys():
        (TESTS / name).unlink()
    for name, text in wanted.items():
        file = TESTS / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file.relative_to(TESTS.parent))


def stored(tests: Path) -> dict[str, str]:
    """The snapshots that are there, by their path in the folder of tests."""
    return {
        file.relative_to(tests).as_posix(): file.read_text(encoding="utf-8")
        for name in (_OPERATIONS, _SECURITY)
        for file in tests.glob(f"*/{name}")
    }


def snapshots(app: FastAPI) -> dict[str, str]:
    """What the snapshots must be, by their path in the folder of tests: beside those of the domain.

    Who may call an operation is in a file of its own, if anything is asked of callers at all: it
    is decided where routers are mounted, for all domains at once. So is what the others get, a 401.
    """
    schema = app.openapi()
    tags: dict[str, dict[str, Any]] = {}
    security: dict[str, dict[str, Any]] = {}
    for path, method, operation in operations(schema):
        shown = {key: value for key, value in operation.items() if key != "security"}
        if operation.get("security"):
            answers = operation["responses"].items()
            shown["responses"] = {status: answer for status, answer in answers if status != "401"}
        for tag in operation.get("tags", ()):
            tags.setdefault(tag, {}).setdefault(path, {})[method] = shown
            security.setdefault(tag, {})[f"{method.upper()} {path}"] = operation.get("security", [])
    components = schema.get("components", {})
    schemas = components.get("schemas", {})
    found = {
        f"{tag}/{_OPERATIONS}": _write(
            {"paths": paths, "schemas": {name: schemas[name] for name in _used(paths, schemas)}}
        )
        for tag, paths in tags.items()
    }
    if "securitySchemes" in components:
        found |= {f"{tag}/{_SECURITY}": _write(needed) for tag, needed in security.items()}
    return found


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each operation of a schema with its path and its method."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def _write(snapshot: dict[str, Any]) -> str:
    return json.dumps(snapshot, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


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
