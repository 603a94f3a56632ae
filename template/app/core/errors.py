"""The errors that carry an HTTP status, and how each exception becomes problem details."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from app.core.problems import (
    MAX_ERRORS,
    Problem,
    document_problems,
    field_problems,
    problem_response,
    responses,
)
from app.core.routing import allowed_methods

__all__ = [
    "AppError",
    "ConflictError",
    "ForbiddenError",
    "NotFoundError",
    "PreconditionFailedError",
    "Problem",
    "RefusedBeforeBodyError",
    "ServiceUnavailableError",
    "TooManyRequestsError",
    "UnauthenticatedError",
    "UnprocessableError",
    "error_response",
    "install_error_handlers",
    "responses",
]


class AppError(Exception):
    """An error with an answer; domains subclass the one whose status fits.

    A subclass may set `code`, a slug that clients can branch on, and `title`, its name in words.
    What is passed as `detail` reaches the client.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str | None] = None
    title: ClassVar[str | None] = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        """Describe this occurrence.

        Args:
            detail: What happened, for the client.
            headers: Sent along with the answer.
            extensions: Further members of the problem's body.
        """
        super().__init__(detail or self.title or type(self).__name__)
        self.detail = detail
        self.headers = headers
        self.extensions = extensions

    def to_response(self, scope: Scope) -> Response:
        """Build the answer to the request whose ASGI scope is given."""
        return problem_response(
            scope,
            self.status,
            detail=self.detail,
            code=self.code,
            title=self.title,
            headers=self.headers,
            extensions=self.extensions,
        )


class UnauthenticatedError(AppError):
    """Nobody proved who is asking, or the proof does not hold (RFC 9110, section 15.5.2)."""

    status = 401

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        # A 401 must say how to authenticate.
        headers = {"WWW-Authenticate": "Bearer", **(headers or {})}
        super().__init__(detail, headers=headers, extensions=extensions)


class ForbiddenError(AppError):
    """The principal is known and may not do this."""

    status = 403


class NotFoundError(AppError):
    """There is no such resource, or none that the principal may know of."""

    status = 404


class ConflictError(AppError):
    """The state of the resource forbids this."""

    status = 409


class PreconditionFailedError(AppError):
    """The resource is not as `If-Match` expects it."""

    status = 412


class UnprocessableError(AppError):
    """The request is well-formed and means something that cannot be done."""

    status = 422

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        """Name the values at fault.

        Args:
            detail: What happened, for the client.
            errors: For each value its `loc`, `msg` and `type`, as pydantic reports them.
            headers: Sent along with the answer.
            extensions: Further members of the problem's body.
        """
        extensions = {**(extensions or {}), "errors": field_problems(errors)}
        super().__init__(detail, headers=headers, extensions=extensions)


class TooManyRequestsError(AppError):
    """A rate limit is used up; send `Retry-After` along."""

    status = 429


class ServiceUnavailableError(AppError):
    """Something that the answer needs is out of reach for the moment."""

    status = 503

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extensions: Mapping[str, Any] | None = None,
    ) -> None:
        detail = detail or "The service cannot answer right now; try again shortly."
        headers = {"Retry-After": "1", **(headers or {})}
        super().__init__(detail, headers=headers, extensions=extensions)


class RefusedBeforeBodyError(HTTPException):
    """An error that stands in for a body that is being read.

    FastAPI takes every other exception there for a body that cannot be parsed, and answers 400.
    """

    def __init__(self, error: AppError) -> None:
        super().__init__(error.status)
        self.error = error


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error that an exception handler can see as problem details, and document it.

    Anything else reaches `RequestMiddleware`, which logs it and answers 500.
    """
    app.add_exception_handler(AppError, _handle)
    app.add_exception_handler(HTTPException, _handle)
    app.add_exception_handler(RequestValidationError, _handle)
    document_problems(app)


def error_response(scope: Scope, error: Exception) -> Response | None:
    """Translate an exception that has an answer of its own; `None` for any other."""
    match error:
        case AppError():
            return error.to_response(scope)
        case RefusedBeforeBodyError():
            return error.error.to_response(scope)
        case HTTPException():
            # FastAPI lets `detail` be anything that JSON can express.
            detail: Any = error.detail
            headers = error.headers
            if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and "router" in scope:
                headers = {**(headers or {}), "Allow": ", ".join(allowed_methods(scope))}
            return problem_response(
                scope,
                error.status_code,
                detail=None if isinstance(detail, Mapping) else str(detail),
                headers=headers,
                extensions=detail if isinstance(detail, Mapping) else None,
            )
        case RequestValidationError():
            return problem_response(
                scope,
                422,
                detail="The request is not valid; see errors."
                if len(error.errors()) <= MAX_ERRORS
                else f"The request is not valid; errors lists the first {MAX_ERRORS} reasons.",
                code="validation",
                title="Request not valid",
                extensions={"errors": field_problems(error.errors())},
            )
        case _:
            return None


async def _handle(request: Request, error: Exception) -> Response:
    response = error_response(request.scope, error)
    if response is None:
        raise error
    return response
