"""What the probes answer."""

from typing import Literal

from app.core.schemas import ApiModel


class Liveness(ApiModel):
    """The process runs and its event loop answers."""

    status: Literal["alive"] = "alive"


class Readiness(ApiModel):
    """Whether requests should be sent here, and which of the needed resources answer."""

    status: Literal["ready", "unavailable"]
    checks: dict[str, Literal["ok", "failed"]]
