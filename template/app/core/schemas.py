"""What every request and response body shares."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.functional_validators import BeforeValidator


class ApiModel(BaseModel):
    """A body of the API; reads from ORM objects as well as from JSON."""

    model_config = ConfigDict(from_attributes=True)
