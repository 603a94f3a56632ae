"""The template's Jinja library by itself."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml
from copier._jinja_ext import CopierTemplateLoader, SandboxedEnvironment
from jinja2 import StrictUndefined

from tests.combinations import COMBINATIONS, Combination
from tests.snapshot import ROOT

Render = Callable[..., str]


@pytest.fixture(scope="session")
def render() -> Render:
    """Renders a text as Copier would."""
    environment = SandboxedEnvironment(
        loader=CopierTemplateLoader(ROOT),
        extensions=["jinja2_ansible_filters.AnsibleCoreFiltersExtension"],
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    return lambda text, **context: environment.from_string(text).render(**context).strip()


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Service", "my-service"),
        ("  Shop -- 2 ", "shop-2"),
        ("Bücherei & Co. (Nord)", "buecherei-co-nord"),
        ("Łódź Żółw", "lodz-zolw"),
        ("Straße Œuvre", "strasse-oeuvre"),
        ("3D Shop", "d-shop"),
        ("42", "service"),
        ("订单", "service"),
        ("FastAPI", "fastapi-service"),
        ("Con", "con-service"),
        ("a" * 39 + " b", "a" * 39),
        ("a" * 100, "a" * 40),
    ],
)
def test_a_slug_is_derived_from_any_name(render: Render, name: str, slug: str) -> None:
    text = "{% from 'extensions/names.jinja' import kebab %}{{ kebab(name) }}"
    assert render(text, name=name) == slug


def test_requirements_but_the_last_are_sorted_and_unique_in_every_combination(
    render: Render,
) -> None:
    for combination in COMBINATIONS:
        runtime, development = requirements(render, combination)
        # `uv add` keeps a sorted list sorted and appends to any other: where a team's own are.
        assert runtime != sorted(runtime)
        assert runtime[:-1] == sorted(set(runtime[:-1]))
        assert development == sorted(set(development))
        assert not set(runtime) & set(development)
        assert all(any(c in r for c in "<>=~") for r in runtime + development), "a pin is missing"


def requirements(render: Render, combination: Combination) -> tuple[list[str], list[str]]:
    text = (
        "{% from 'extensions/requirements.jinja' import development, runtime with context %}"
        "{{ [runtime, development] | to_json }}"
    )
    runtime, development = yaml.safe_load(render(text, **combination.answers))
    return runtime, development


def test_the_questions_offer_what_the_library_accepts(render: Render) -> None:
    text = (
        "{% from 'extensions/features.jinja' import CHOICES, QUESTIONS, SWITCHES %}"
        "{{ [CHOICES, QUESTIONS, SWITCHES] | to_json }}"
    )
    choices, names, switches = yaml.safe_load(render(text))
    config: dict[str, Any] = yaml.safe_load((ROOT / "copier.yml").read_text())
    asked = {k: v for k, v in config.items() if not k.startswith("_") and k != "check_answers"}
    assert set(names) == set(asked)
    assert set(switches) == {k for k, v in asked.items() if v["type"] == "bool"}
    offered = {k: v["choices"] for k, v in asked.items() if "choices" in v}
    assert choices == {
        k: list(v.values()) if isinstance(v, dict) else v for k, v in offered.items()
    }
