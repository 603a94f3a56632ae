"""The questions: what they accept, and the one line with which they refuse."""

from pathlib import Path
from typing import Any

import copier
import pytest
import yaml
from copier._main import Worker
from copier._user_data import AnswersMap, Question

from tests.questions import (
    BAD_ANSWERS,
    CHANGED_ANSWERS,
    CONTRADICTIONS,
    GOOD_ANSWERS,
    LONG,
    refusal,
)
from tests.rendering import Renderer, fast_copier, question_names
from tests.snapshot import read_tree


@pytest.mark.parametrize(
    ("answers", "message"), BAD_ANSWERS + CONTRADICTIONS, ids=lambda value: ascii(value)[:60]
)
def test_a_bad_answer_is_refused_in_one_line(
    template: Path, answers: dict[str, Any], message: str
) -> None:
    said = refusal(template, answers)
    assert message in said
    assert "\n" not in said
    assert LONG not in said


@pytest.mark.parametrize("answers", GOOD_ANSWERS, ids=lambda value: ascii(value)[:60])
def test_a_good_answer_is_stored_as_given(renderer: Renderer, answers: dict[str, Any]) -> None:
    folder = renderer.render(answers)
    stored = yaml.safe_load((folder / ".copier-answers.yml").read_text())
    for name, value in answers.items():
        expected = value not in ("no", False) if name == "include_example" else str(value)
        assert stored[name] == expected


TYPED = [
    (name, value)
    for answers, message in BAD_ANSWERS
    for name, value in answers.items()
    if isinstance(value, str) and "is not a question" not in message and name != "include_example"
]


@pytest.mark.parametrize(("name", "value"), TYPED, ids=lambda value: ascii(value)[:60])
def test_the_prompt_refuses_it_too(template: Path, name: str, value: str) -> None:
    """In a terminal, where Copier shows the validator's message below the question."""
    worker = Worker(src_path=str(template), dst_path=template / "none")
    details = worker.template.questions_data[name]
    question = Question(
        answers=AnswersMap(),
        context={"_copier_answers": {}},
        jinja_env=worker.jinja_env,
        var_name=name,
        **details,
    )
    with pytest.raises(ValueError, match=r"Invalid choice|Validation error(?!.*undefined)"):
        question.validate_answer(question.parse_answer(value))


def test_defaults_alone_render_a_service(renderer: Renderer) -> None:
    stored = yaml.safe_load((renderer.render({}, others={}) / ".copier-answers.yml").read_text())
    stored.pop("_src_path")
    assert stored == {
        "author_email": "",
        "author_name": "",
        "ci": "github",
        "database": "postgresql",
        "deployment": "docker",
        "description": "A service with an HTTP API.",
        "include_example": True,
        "license": "Proprietary",
        "project_name": "My Service",
        "project_slug": "my-service",
        "python_version": "3.11",
        "server": "uvicorn",
        "use_jwt": True,
        "use_websockets": False,
        "use_redis": False,
    }


def test_every_question_has_a_type_and_says_what_it_asks(template: Path) -> None:
    config = yaml.safe_load((template / "copier.yml").read_text())
    for name in question_names(template):
        assert config[name]["type"] in {"str", "bool"}, name
        assert config[name]["help"].endswith(("?", ".")), name
        assert "default" in config[name], name


def test_a_misspelled_answer_is_refused_by_the_harness(renderer: Renderer) -> None:
    with pytest.raises(ValueError, match="does not ask for projct_name"):
        renderer.render({"projct_name": "Shop"})


@pytest.mark.parametrize(("first", "changed", "message"), CHANGED_ANSWERS)
def test_some_answers_cannot_change_after_the_first_copy(
    template: Path, tmp_path: Path, first: dict[str, Any], changed: dict[str, Any], message: str
) -> None:
    service = tmp_path / "service"
    with fast_copier():
        copier.run_copy(str(template), service, data=first, defaults=True, quiet=True)
    before = read_tree(service)
    said = refusal(template, changed, folder=service)
    assert message in said
    assert "\n" not in said
    assert read_tree(service) == before


def test_an_answer_that_cannot_change_is_not_asked_again(template: Path) -> None:
    config = yaml.safe_load((template / "copier.yml").read_text())
    for _, changed, message in CHANGED_ANSWERS:
        name = message.partition(":")[0]
        assert name in changed or "comes with" in message
        assert config[name]["ask"] == f"{{{{ {name} is undefined }}}}"


def test_a_refused_answer_of_a_new_service_is_shown_as_it_is(
    template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the command prints: the line, and what the template stops with."""
    stopped = refusal(template, {"use_arq": True}, quiet=False)
    line = "use_arq: needs use_redis; answer use_redis=true, or use_arq=false\n"
    assert capsys.readouterr().err == line
    assert stopped == "parameter 'valid_answer' was not provided"
