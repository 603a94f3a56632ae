"""Access that a worker ends: the connections to the service are told."""

from uuid import UUID

from pydantic import BaseModel

from app.core.events import record
from app.core.jobs import JobContext, JobRegistry, job
from app.users.events import AccessChanged
from app.users.models import User
from tests.fixtures.authentication import Account
from tests.fixtures.jobs import Jobs, WorkHere
from tests.realtime.client import open_client
from tests.realtime.conftest import ServeChannels


class Deactivate(BaseModel):
    """Whose access ends."""

    user_id: UUID


@job(name="tests.deactivate", payload=Deactivate)
async def deactivate(payload: Deactivate, context: JobContext) -> None:
    """End somebody's access, as a domain's job would."""
    user = await context.session.get_one(User, payload.user_id)
    user.is_active = False
    record(context.session, AccessChanged(user_id=user.id, reason="deactivated"))


async def test_a_connection_ends_with_the_access_that_a_job_ends(
    serve_channels: ServeChannels, work_here: WorkHere, jobs: Jobs, user: Account
) -> None:
    async with (
        # The periodic check would find it in the end.
        serve_channels(env={"REALTIME_AUTH_CHECK_SECONDS": "3600"}) as server,
        work_here(JobRegistry({deactivate.name: deactivate}, ())),
        open_client(server, user.headers) as client,
    ):
        await jobs.enqueue(deactivate, Deactivate(user_id=user.id))
        assert await client.closed() == (1008, "the session is over")
