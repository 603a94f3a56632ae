"""The HTTP interface of users: registering, oneself, and the accounts that admins look after."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request, Response

from app.core.errors import responses
from app.core.pagination import Page, PageParamsDep
from app.core.rate_limit import rate_limit
from app.core.security import CurrentUser, Role, require_role
from app.users.dependencies import CredentialsDep, UsersDep, UsersReadOnlyDep
from app.users.exceptions import EmailTakenError
from app.users.schemas import AccessUpdate, PasswordChange, UserRead, UserRegister, UserUpdate
from app.users.service import UserSettings

_PREFIX = "/api/v1/users"
# Two passwords, or one with a name and an address; each character may take twelve bytes.
_MAX_BODY_SIZE = 16_384

public_router = APIRouter(
    prefix=_PREFIX, tags=["users"], responses=responses(422, 429), max_body_size=_MAX_BODY_SIZE
)
# Behind the guard.
router = APIRouter(
    prefix=_PREFIX, tags=["users"], responses=responses(422, 429), max_body_size=_MAX_BODY_SIZE
)

UserId = Annotated[UUID, Path(description="The user's `id`.")]

_ADMIN = require_role(Role.ADMIN)
_LOCATION: dict[str, Any] = {
    "Location": {"description": "Where to read it.", "schema": {"type": "string"}}
}


@public_router.post(
    "",
    summary="Register",
    status_code=201,
    response_model=UserRead,
    # Each registration costs a password's hash: memory, and a core.
    dependencies=[Depends(rate_limit(20, 600))],
    responses={
        201: {"headers": _LOCATION},
        202: {"description": "The service does not tell whether the address was new."},
        **responses(409),
    },
)
async def register(body: UserRegister, credentials: CredentialsDep, request: Request) -> Response:
    """Make an account; log in with it at `/api/v1/auth/token`."""
    settings: UserSettings = request.state.settings
    try:
        user = await credentials.register(body)
    except EmailTakenError:
        if settings.REGISTRATION_REVEALS_ACCOUNTS:
            raise
        return Response(status_code=202)
    if not settings.REGISTRATION_REVEALS_ACCOUNTS:
        return Response(status_code=202)
    return Response(
        UserRead.model_validate(user).model_dump_json(),
        201,
        {"Location": f"{_PREFIX}/me"},
        media_type="application/json",
    )


@router.get("/me", summary="Get yourself")
async def get_me(user: CurrentUser, users: UsersReadOnlyDep) -> UserRead:
    """Get your own account."""
    return UserRead.model_validate(await users.get(UUID(user.id)))


@router.patch("/me", summary="Change yourself")
async def update_me(body: UserUpdate, user: CurrentUser, users: UsersDep) -> UserRead:
    """Change your own account; what is omitted stays, `null` removes."""
    return UserRead.model_validate(await users.update(UUID(user.id), body))


@router.post(
    "/me/password",
    summary="Change your password",
    status_code=204,
    # A stolen access token must not be enough to guess the password.
    dependencies=[Depends(rate_limit(10, 600, holds_in_outage=True))],
)
async def change_password(
    body: PasswordChange, user: CurrentUser, credentials: CredentialsDep
) -> None:
    """Change your password; every session ends, this one as well: log in again."""
    await credentials.change_password(UUID(user.id), body)


@router.get("", summary="List users", dependencies=[_ADMIN], responses=responses(403))
async def list_users(users: UsersReadOnlyDep, page: PageParamsDep) -> Page[UserRead]:
    """List all users, newest first; for admins."""
    return Page[UserRead].model_validate(await users.list_newest(page))


@router.get(
    "/{user_id}", summary="Get a user", dependencies=[_ADMIN], responses=responses(403, 404)
)
async def get_user(user_id: UserId, users: UsersReadOnlyDep) -> UserRead:
    """Get a user; for admins."""
    return UserRead.model_validate(await users.get(user_id))


@router.patch(
    "/{user_id}",
    summary="Change a user's access",
    dependencies=[_ADMIN],
    responses=responses(403, 404, 409),
)
async def update_access(
    user_id: UserId, body: AccessUpdate, user: CurrentUser, users: UsersDep
) -> UserRead:
    """Change a user's role, deactivate or activate them; for admins, and not for themselves.

    Access tokens that the user has are void at once. A deactivated user's sessions end.
    """
    return UserRead.model_validate(await users.update_access(user, user_id, body))
