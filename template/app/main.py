"""The HTTP service's composition root."""

from fastapi import FastAPI

from app.api import include_routers
from app.core.documentation import install_documentation
from app.core.errors import install_error_handlers
from app.core.exchange import is_probe
from app.core.http_stack import install_http_stack
from app.core.logging import configure_logging
from app.core.metrics import MetricsEndpoint
from app.core.telemetry import trace_requests
from app.lifespan import create_lifespan
from app.settings import InvalidSettingsError, Settings, load_settings


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; serve it with `uvicorn app.main:create_app --factory`.

    Args:
        settings: The settings to use; read from the environment when omitted.

    Raises:
        SystemExit: when the environment is invalid, with a line for each variable.
    """
    settings = settings or _settings_or_exit()
    configure_logging(settings)
    app = FastAPI(
        title=settings.APP_NAME,
        lifespan=create_lifespan(settings),
        # A public schema is a map of the attack surface.
        openapi_url=None if settings.is_production else "/openapi.json",
        # Theirs load scripts from other hosts; `install_documentation` brings ours.
        docs_url=None,
        redoc_url=None,
        # The redirect would lead to whatever host the client has named.
        redirect_slashes=False,
        telemetry=trace_requests(settings, exclude=is_probe),
    )
    include_routers(app)
    install_documentation(app, traces=settings.keeps_traces)
    app.routes.append(MetricsEndpoint(settings).route)
    install_error_handlers(app)
    install_http_stack(app, settings, https_only=settings.is_production)
    return app


def _settings_or_exit() -> Settings:
    try:
        return load_settings()
    except InvalidSettingsError as error:
        message = f"The service cannot start with this environment:\n{error}"
        raise SystemExit(message) from None
