import json
from decimal import Decimal
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from app.core.schemas import ApiInput, ApiModel, MoneyString

Price = Annotated[Decimal, MoneyString(integer_digits=3)]
price = TypeAdapter[Decimal](Price)


class Article(ApiModel):
    price: Price


class ArticleCreate(ApiInput):
    pieces: int


@pytest.mark.parametrize(
    ("text", "amount"), [("0", "0"), ("0.05", "0.05"), ("12.5", "12.5"), ("999.99", "999.99")]
)
def test_decimal_strings_become_exact_amounts(text: str, amount: str) -> None:
    assert price.validate_python(text) == Decimal(amount)
    assert price.validate_json(f'"{text}"') == Decimal(amount)


@pytest.mark.parametrize(
    "value",
    [
        12.5,
        12,
        True,
        None,
        "",
        " 1",
        "1\n",
        "1.",
        ".5",
        "1.234",
        "1000",
        "01",
        "-1",
        "+1",
        "1e2",
        "1_0",
        "NaN",
        "Infinity",
        "\u0661",
        Decimal("1.005"),
        Decimal(-1),
        Decimal(1000),
        Decimal("NaN"),
        Decimal("Infinity"),
    ],
)
def test_anything_but_a_plain_decimal_string_in_range_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError) as refusal:
        price.validate_python(value)

    assert [error["type"] for error in refusal.value.errors()] == ["money_string"]


def test_json_numbers_are_refused() -> None:
    with pytest.raises(ValidationError):
        price.validate_json("12.50")


@pytest.mark.parametrize(("amount", "text"), [("0", "0.00"), ("12.5", "12.50"), ("7.1000", "7.10")])
def test_amounts_are_answered_with_two_places(amount: str, text: str) -> None:
    assert Article(price=Decimal(amount)).model_dump(mode="json") == {"price": text}


def test_amounts_stay_decimals_within_the_service() -> None:
    assert Article(price=Decimal("12.5")).model_dump() == {"price": Decimal("12.5")}


def test_the_json_schema_says_string_and_pattern() -> None:
    accepted = price.json_schema(mode="validation")
    answered = price.json_schema(mode="serialization")

    assert (accepted["type"], accepted["pattern"]) == (
        "string",
        r"^(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?$",
    )
    assert (answered["type"], answered["pattern"]) == ("string", r"^(0|[1-9][0-9]*)\.[0-9]{2}$")


@pytest.mark.parametrize("pieces", ["1", 1.0, True])
def test_an_input_coerces_nothing(pieces: Any) -> None:
    with pytest.raises(ValidationError):
        ArticleCreate(pieces=pieces)


def test_an_input_refuses_unknown_fields() -> None:
    with pytest.raises(ValidationError) as refusal:
        ArticleCreate.model_validate({"pieces": 1, "peices": 2})

    assert refusal.value.errors()[0]["loc"] == ("peices",)


def test_a_flood_of_unknown_fields_is_one_error() -> None:
    flood = json.dumps({"pieces": 1, **dict.fromkeys(map(str, range(100_000)))})
    with pytest.raises(ValidationError) as refusal:
        ArticleCreate.model_validate_json(flood)

    [error] = refusal.value.errors()
    assert error["type"] == "too_many_fields"


def test_an_answer_reads_from_objects() -> None:
    class Row:
        price = Decimal("1.50")

    assert Article.model_validate(Row()) == Article(price=Decimal("1.5"))
