"""What a job ends is over at the very next request, whatever the service remembers."""

import sys
from uuid import UUID

import httpx2
from pydantic import BaseModel

from app.core.jobs import JobContext, JobRegistry, job
from app.core.principal import Principal
from app.users.schemas import AccessUpdate
from app.users.service import UserService
from tests.fixtures.authentication import Account
from tests.fixtures.jobs import Jobs, WorkHere, eventually


class Deactivation(BaseModel):
    """Who deactivates whom."""

    admin_id: UUID
    user_id: UUID


@job(name="tests.deactivate", payload=Deactivation)
async def deactivate(payload: Deactivation, context: JobContext) -> None:
    """Deactivate a user."""
    await UserService(context.session).update_access(
        Principal(str(payload.admin_id)), payload.user_id, AccessUpdate(is_active=False)
    )


async def test_a_job_that_deactivates_a_user_ends_their_access(
    anonymous_client: httpx2.AsyncClient,
    user: Account,
    admin: Account,
    jobs: Jobs,
    work_here: WorkHere,
) -> None:
    async def ask() -> int:
        answer = await anonymous_client.get("/api/v1/auth/sessions", headers=user.headers)
        return answer.status_code

    assert await ask() == 200

    async with work_here(JobRegistry.of([sys.modules[__name__]])):
        await jobs.enqueue(deactivate, Deactivation(admin_id=admin.id, user_id=user.id))
        await eventually(jobs.rows, lambda rows: all(row.done_at for row in rows))

    assert await ask() == 401
