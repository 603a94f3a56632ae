"""Your own settings: the place to add them; template updates leave this file alone.

Each field is a variable, which `.env.example` names as well. A domain declares what configures it,
so that it need not know this file, and `DomainSettings` inherits that:

    class LendingSettings(Section):  # in app/books/service.py
        LENDING_DAYS: int = Field(default=14, ge=1, le=365, description="...")

    class DomainSettings(LendingSettings): ...

In a route or a dependency of the domain:

    settings: LendingSettings = request.state.settings
"""

from app.core.settings import Section


class DomainSettings(Section):
    """What the service is configured with beside the template's settings."""
