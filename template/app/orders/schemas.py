"""The bodies of the orders API."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from pydantic import ConfigDict, Field

from app.core.email import Email
from app.core.schemas import ApiInput, ApiModel, MoneyString
from app.orders.models import OrderStatus

# 100 lines of a million pieces at just under 10^8 stay within the 16 digits of a total.
MAX_LINES = 100
MAX_QUANTITY = 1_000_000
UnitPrice = Annotated[Decimal, MoneyString(integer_digits=8)]
Total = Annotated[Decimal, MoneyString(integer_digits=16)]


class OrderLineCreate(ApiInput):
    """An article to order."""

    sku: str = Field(
        pattern=r"^[!-~]([ -~]{0,62}[!-~])?$",
        description="The article's number: up to 64 printable ASCII characters.",
        examples=["TEA-250"],
    )
    quantity: int = Field(ge=1, le=MAX_QUANTITY, examples=[2])
    unit_price: UnitPrice = Field(description="The price of one piece.", examples=["12.50"])


class OrderCreate(ApiInput):
    """An order to place."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "customer_email": "ada@example.com",
                    "lines": [
                        {"sku": "TEA-250", "quantity": 2, "unit_price": "12.50"},
                        {"sku": "MUG-WHITE", "quantity": 1, "unit_price": "8.90"},
                    ],
                }
            ]
        }
    )

    customer_email: Email
    lines: list[OrderLineCreate] = Field(min_length=1, max_length=MAX_LINES)


class OrderLineRead(ApiModel):
    """An article of an order."""

    sku: str = Field(examples=["TEA-250"])
    quantity: int = Field(examples=[2])
    unit_price: UnitPrice


class OrderRead(ApiModel):
    """An order as its owner sees it."""

    id: UUID = Field(description="Version 7: newer orders have greater ids.")
    status: OrderStatus
    customer_email: str = Field(examples=["ada@example.com"])
    lines: list[OrderLineRead]
    total: Total = Field(
        description="The sum over the lines of quantity times unit price.", examples=["33.90"]
    )
    created_at: datetime
    updated_at: datetime
