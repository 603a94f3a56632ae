"""Whatever is sent to the running service, it answers as its OpenAPI description says."""

import subprocess
import sys
from pathlib import Path

import anyio

from tests.fixtures.caller import Caller
from tests.fixtures.server import Serve

_CHECKS = (
    "allow_header_conformance",
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
)
_EXAMPLES_FOR_EACH_OPERATION = 10


async def test_no_request_gets_an_undescribed_answer(
    serve: Serve, trusted_caller: Caller, tmp_path: Path
) -> None:
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run"),
        *("--checks", ",".join(_CHECKS)),
        *("--max-examples", str(_EXAMPLES_FOR_EACH_OPERATION)),
        # The same requests in every run: a failure is a change of the code.
        "--generation-deterministic",
        "--no-color",
        *(f"--header={name}: {value}" for name, value in trusted_caller.headers.items()),
        *(f"--exclude-path={path}" for path in trusted_caller.never_sent),
    ]
    # The description is not served in production.
    async with serve(env={"ENVIRONMENT": "test", "LOG_LEVEL": "WARNING"}) as server:
        result = await anyio.run_process(
            [*command, f"{server.url}/openapi.json"],
            check=False,
            # It leaves files behind.
            cwd=tmp_path,
            stderr=subprocess.STDOUT,
        )
        logs = server.logs()

    assert result.returncode == 0, f"{result.stdout.decode()}\n{logs}"
