"""Metrics of four processes, and a real Prometheus; test_observability.py copies it."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import httpx2
from prometheus_client import REGISTRY, generate_latest
from tests.core.test_metrics import REQUESTS, value_of
from tests.fixtures.process import reserve_port
from tests.fixtures.server import Serve

FOLDER = Path("deploy/observability").resolve()
RULES = FOLDER / "rules"
PATIENCE = 120
ASKED = 100


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is true; what cannot be reached yet is asked again."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                if found := await ask():
                    return found
            except (httpx2.HTTPError, ValueError, KeyError):
                pass
            await anyio.sleep(0.2)


async def read(url: str) -> str:
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE) as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def ask(url: str) -> None:
    """Send requests, each over a connection of its own, so that all processes get some."""
    headers = {"Connection": "close"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=PATIENCE) as client:
        for _ in range(ASKED):
            assert (await client.get("/health/live")).status_code == 200


@contextmanager
def supervised(database_url: str, folder: Path, shared: Path) -> Iterator[str]:
    """uvicorn with four workers that share a folder; its URL."""
    port = reserve_port()
    environment = {
        **os.environ,
        "DATABASE_URL": database_url,
        "PROMETHEUS_MULTIPROC_DIR": str(shared),
        "PYTHONPATH": str(Path.cwd()),
    }
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory"]
    with (folder / "output.log").open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", "4", "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


async def test_four_processes_tell_what_was_asked_also_when_one_was_killed(
    database_url: str, tmp_path: Path
) -> None:
    shared = tmp_path / "metrics"
    shared.mkdir()
    asked = {"method": "GET", "route": "/health/live", "status": "200"}

    def started() -> list[int]:
        text = (tmp_path / "output.log").read_text()
        complete = text.count("Application startup complete")
        pids = re.findall(r"Started server process \D*(\d+)", text)
        return [int(pid) for pid in pids] if complete == len(pids) else []

    async def have_started(count: int) -> list[int]:
        async def look() -> list[int]:
            return started() if len(started()) >= count else []

        found: list[int] = await eventually(look)
        return found

    with supervised(database_url, tmp_path, shared) as url:
        pids = await have_started(4)
        await ask(url)
        assert value_of(await read(url), REQUESTS, **asked) == ASKED
        os.kill(pids[-1], signal.SIGKILL)
        # The supervisor starts another one.
        await have_started(5)
        await ask(url)
        assert value_of(await read(url), REQUESTS, **asked) == 2 * ASKED

        async def all_pools() -> bool:
            # Of those that live: each has a pool of its own, and tells of it once a second.
            return value_of(await read(url), "database_connections_max") == 4 * 15

        assert await eventually(all_pools)


def expressions() -> list[str]:
    """Every expression of the dashboards and of the rules."""
    dashboards = [json.loads(file.read_text()) for file in (FOLDER / "dashboards").glob("*.json")]
    panels = [panel for dashboard in dashboards for panel in dashboard["panels"]]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    for file in RULES.glob("*.yaml"):
        found += re.findall(r"expr: (.*(?:\n {10,}.*)*)", file.read_text())
    return found


def metrics_in(expression: str) -> set[str]:
    """The metrics that it reads, without those that a rule records: they have colons."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|\b(by|on) \([^)]*\)', " ", expression)
    bare = re.sub(r"\{[^}]*\}", " ", bare)
    words = re.findall(r"[\w:]+\b(?! ?\()", bare)
    return {word for word in words if "_" in word and ":" not in word}


async def test_every_metric_that_dashboards_and_rules_name_is_exposed(serve: Serve) -> None:
    async with serve() as server:
        text = await read(server.url)
    # What workers expose.
    if find_spec("app.worker_lifespan"):
        import_module("app.worker_lifespan")
        text += generate_latest(REGISTRY).decode()
    exposed = {"up"}
    for name, kind in re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE):
        suffixes = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        exposed |= {name + suffix for suffix in suffixes}
    named = set().union(*map(metrics_in, expressions()))
    assert len(named) > 5
    assert named - exposed == set()


def test_every_alert_is_in_the_runbook_and_nothing_else() -> None:
    alerts = re.findall(r"alert: (\w+)", "".join(file.read_text() for file in RULES.glob("*")))
    headings = re.findall(r"^### (\w+)$", Path("docs/runbook.md").read_text(), re.MULTILINE)
    assert sorted(alerts) == sorted(headings)


def test_promtool_finds_nothing_wrong() -> None:
    subprocess.run(["promtool", "check", "rules", *RULES.glob("*.yaml")], check=True)


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A Prometheus that reads the target each second and evaluates the service's rules."""
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [f"{RULES}/*.yaml"],
                "scrape_configs": [
                    {"job_name": "service", "static_configs": [{"targets": [target]}]}
                ],
            }
        )
    )
    port = reserve_port()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/api/v1/") as client:
            yield client
    finally:
        process.kill()
        process.wait()


async def test_prometheus_reads_the_service_and_evaluates_every_rule(
    serve: Serve, tmp_path: Path
) -> None:
    async with (
        serve() as server,
        prometheus(tmp_path, server.url.removeprefix("http://")) as client,
    ):
        await ask(server.url)

        async def recorded() -> list[Any]:
            query = {"query": "job_route:http_server_requests:rate5m > 0"}
            found: list[Any] = (await client.get("query", params=query)).json()["data"]["result"]
            return found

        async def evaluated() -> list[Any]:
            groups = (await client.get("rules")).json()["data"]["groups"]
            rules = [rule for group in groups for rule in group["rules"]]
            return [] if any(rule["health"] == "unknown" for rule in rules) else rules

        await eventually(recorded)
        rules = await eventually(evaluated)
        assert {rule["health"] for rule in rules} == {"ok"}
        # Nothing is wrong with a service that has just started.
        assert [rule["name"] for rule in rules if rule.get("state") == "firing"] == []
