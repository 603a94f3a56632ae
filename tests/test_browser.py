"""The pages of development, in a real browser, on a service that `just dev` serves."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import (
    APIRequestContext,
    Browser,
    Error,
    FormData,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from tests.combinations import Combination, parse_combination
from tests.service import Service

WITH_USERS = parse_combination("sqlite+jwt+websockets+example")
WITHOUT_USERS = parse_combination("sqlite+websockets+example")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
QUIET = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    # Or it asks its maker for this and that.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The internet is cut off: what a page loads from elsewhere is missing, as on a train.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)
START_SECONDS = 60.0
END_SECONDS = 20.0
PATIENCE_MS = 15_000.0

ACCOUNT = {"email": "ada@example.com", "password": "bernoulli numbers by engine"}
ORDER = {
    "customer_email": "ada@example.com",
    "lines": [{"sku": "TEA-250", "quantity": 2, "unit_price": "12.50"}],
}
MARKUP = "<img src=x onerror=\"document.title = 'run'\">"


@dataclass(frozen=True)
class Served:
    """A service at work, and a client for its API."""

    process: subprocess.Popen[bytes]
    api: APIRequestContext
    url: str

    def log_in(self) -> str:
        """Register unless that is done, and answer an access token."""
        self.api.post("/api/v1/users", data=ACCOUNT)
        form = FormData()
        form.set("username", ACCOUNT["email"])
        form.set("password", ACCOUNT["password"])
        token = self.api.post("/api/v1/auth/token", form=form).json()["access_token"]
        assert isinstance(token, str)
        return token

    def place_order(self, token: str | None = None) -> str:
        """Place an order and answer its id."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = self.api.post("/api/v1/orders", data=ORDER, headers=headers)
        assert answer.status == 201, answer.text()
        return str(answer.json()["id"])

    def send(self, number: int) -> None:
        """Send a signal to all processes of the command, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass(frozen=True)
class Tab:
    """The page, and what was wrong with it so far."""

    page: Page
    problems: list[str] = field(default_factory=list)

    @property
    def status(self) -> Locator:
        return self.page.get_by_role("status")

    def entries(self, text: str) -> Locator:
        return self.page.get_by_role("log").get_by_role("listitem").filter(has_text=text)

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def fill(self, label: str, text: str) -> None:
        self.page.get_by_label(label).fill(text)


OpenTab = Callable[[Served], Tab]
Services = Callable[[Combination], Service]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, NAMES)), None)
    if executable is None:
        pytest.skip(f"install Chromium to have this run: none of {', '.join(NAMES)} is on PATH")
    expect.set_options(timeout=PATIENCE_MS)
    with (
        sync_playwright() as playwright,
        # Root and most containers cannot have its sandbox, and all pages are our own.
        playwright.chromium.launch(
            executable_path=executable, args=QUIET, chromium_sandbox=False
        ) as browser,
    ):
        yield browser


@pytest.fixture(scope="module")
def with_users(
    browser: Browser, services: Services, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with serving(services(WITH_USERS), browser, tmp_path_factory.mktemp("served")) as served:
        yield served


@contextmanager
def serving(service: Service, browser: Browser, folder: Path) -> Iterator[Served]:
    """Serve as a developer does, on a port of its own."""
    environment = service.install()
    # Bound and held, the port is given to nobody else; a server may still listen on it.
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    port = reservation.getsockname()[1]
    output = folder / "output.log"
    with output.open("wb") as log:
        process = subprocess.Popen(
            [environment / "bin" / "just", "dev"],
            cwd=service.folder,
            env=service.environ({"PORT": str(port)}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    with reservation, browser.new_context(base_url=url) as context:
        served = Served(process, context.request, url)
        try:
            _wait_until_ready(served, output)
            yield served
        finally:
            # At SIGINT `just` waits for what it has started; at SIGTERM it does not.
            served.send(signal.SIGINT)
            try:
                process.wait(END_SECONDS)
            finally:
                served.send(signal.SIGKILL)


def _wait_until_ready(served: Served, output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and served.process.poll() is None:
        with suppress(Error):
            if served.api.get("/health/ready").ok:
                return
        time.sleep(0.1)
    raise AssertionError(f"`just dev` serves nothing; it printed:\n{output.read_text()}")


@pytest.fixture
def open_tab(browser: Browser) -> Iterator[OpenTab]:
    """Open the page in a profile of its own; what is wrong with it at the end is a failure."""
    opened: list[Tab] = []
    with browser.new_context() as context:
        context.set_default_timeout(PATIENCE_MS)

        def open_tab(served: Served) -> Tab:
            tab = Tab(context.new_page())
            opened.append(tab)
            note = tab.problems.append
            tab.page.on("console", lambda m: note(m.text) if m.type == "error" else None)
            tab.page.on("pageerror", lambda error: note(str(error)))
            own = (served.url, "data:")
            tab.page.on("request", lambda r: None if r.url.startswith(own) else note(r.url))
            tab.page.goto(f"{served.url}/docs/realtime")
            return tab

        yield open_tab
        assert [tab.problems for tab in opened] == [[] for _ in opened]


def test_it_shows_the_events_of_a_user(with_users: Served, open_tab: OpenTab) -> None:
    token = with_users.log_in()
    tab = open_tab(with_users)
    expect(tab.page.locator("datalist option")).to_have_attribute("value", "orders")
    tab.fill("Channel", "orders")
    tab.fill("Bearer token", token)
    tab.press("Connect")
    expect(tab.entries('{"type":"subscribed","channel":"orders"}')).to_be_visible()
    expect(tab.status).to_have_text("open")
    order_id = with_users.place_order(token)
    placed = tab.entries('"event": "order.placed"')
    expect(placed).to_contain_text(f'"order_id": "{order_id}"')
    expect(placed).to_have_text(re.compile(r"^\d\d:\d\d:\d\d ← \{\n"))
    tab.press("Disconnect")
    expect(tab.status).to_contain_text("closed: 1000")


def test_it_says_that_a_wrong_token_was_refused(with_users: Served, open_tab: OpenTab) -> None:
    tab = open_tab(with_users)
    tab.fill("Channel", "orders")
    tab.fill("Bearer token", "wrong")
    with tab.page.expect_console_message() as complaint:
        tab.press("Connect")
    expect(tab.status).to_contain_text("closed: 1006 refused")
    # That is all that the browser may complain of.
    assert "WebSocket connection" in complaint.value.text
    tab.problems.remove(complaint.value.text)
    tab.fill("Bearer token", "no token")
    tab.press("Connect")
    expect(tab.status).to_contain_text("not connected: ")


def test_a_second_connect_closes_the_first(with_users: Served, open_tab: OpenTab) -> None:
    tab = open_tab(with_users)
    tab.fill("Bearer token", with_users.log_in())
    with tab.page.expect_websocket() as first:
        tab.press("Connect")
    expect(tab.status).to_have_text("open")
    with tab.page.expect_websocket() as second, first.value.expect_event("close"):
        tab.press("Connect")
    expect(tab.entries("closed: 1000")).to_have_count(1)
    expect(tab.status).to_have_text("open")
    assert not second.value.is_closed()


def test_what_the_service_says_stays_text(with_users: Served, open_tab: OpenTab) -> None:
    tab = open_tab(with_users)
    tab.fill("Bearer token", with_users.log_in())
    tab.fill("Channel", MARKUP)
    tab.press("Subscribe")
    expect(tab.entries('"code":"unknown-channel"')).to_be_visible()
    tab.press("Unsubscribe")
    expect(tab.entries('← {"type":"unsubscribed","channel":"<img ')).to_be_visible()
    assert tab.page.title() == "Channels"
    assert tab.page.locator("img").count() == 0


def test_it_forgets_old_frames(with_users: Served, open_tab: OpenTab) -> None:
    tab = open_tab(with_users)
    tab.page.evaluate("for (let number = 1; number <= 250; number++) log(`frame ${number}.`)")
    assert tab.entries("frame").count() == 200
    assert tab.entries("frame 50.").count() == 0


def test_without_users_it_shows_events_until_the_service_ends(
    browser: Browser, services: Services, open_tab: OpenTab, tmp_path: Path
) -> None:
    with serving(services(WITHOUT_USERS), browser, tmp_path) as served:
        tab = open_tab(served)
        tab.fill("Channel", "orders")
        tab.page.keyboard.press("Enter")
        expect(tab.entries('"subscribed"')).to_be_visible()
        order_id = served.place_order()
        expect(tab.entries('"event": "order.placed"')).to_contain_text(order_id)
        served.send(signal.SIGTERM)
        expect(tab.status).to_have_text("closed: 1012 the service restarts")


def test_the_api_is_tried_out_without_the_internet(with_users: Served, open_tab: OpenTab) -> None:
    with_users.log_in()
    tab = open_tab(with_users)
    page = tab.page
    page.get_by_role("navigation").get_by_role("link", name="API").press("Enter")
    _press(page.get_by_role("button", name="Authorize"))
    dialog = page.locator(".modal-ux")
    dialog.locator("#oauth_username").fill(ACCOUNT["email"])
    dialog.locator("#oauth_password").fill(ACCOUNT["password"])
    _press(dialog.locator("button.authorize"))
    expect(dialog).to_contain_text("Authorized")
    _press(dialog.locator("button.close-modal"))
    _picture(page, "api")
    operation = page.locator(".opblock").filter(has_text="Place an order")
    _press(operation.locator(".opblock-summary-control"))
    _press(operation.get_by_role("button", name="Try it out"))
    _press(operation.get_by_role("button", name="Execute"))
    answer = operation.locator(".live-responses-table")
    expect(answer.locator(".response").first).to_contain_text("201")
    expect(answer).to_contain_text('"status": "placed"')


def test_the_pages_follow_the_colours_of_the_system(with_users: Served, open_tab: OpenTab) -> None:
    token = with_users.log_in()
    tab = open_tab(with_users)
    tab.fill("Bearer token", token)
    tab.fill("Channel", "orders")
    tab.press("Subscribe")
    expect(tab.entries('"subscribed"')).to_be_visible()
    with_users.place_order(token)
    expect(tab.entries('"event": "order.confirmed"')).to_be_visible()
    _picture(tab.page, "channels")


def test_what_requests_did_is_shown_in_the_colours_of_the_system(
    with_users: Served, open_tab: OpenTab
) -> None:
    token = with_users.log_in()
    page = open_tab(with_users).page
    _press(page.get_by_role("navigation").get_by_role("link", name="Traces"))
    # The page sees by itself what comes.
    with_users.place_order(token)
    placed = page.get_by_role("row").filter(has_text="POST /api/v1/orders").first
    expect(placed).to_contain_text("201")
    with_users.api.get(f"/not-there/{quote(MARKUP)}")
    missing = page.get_by_role("row").filter(has_text="GET /not-there/<img")
    expect(missing).to_have_text(re.compile(r">404[\d.]+ ms1\d\d:\d\d:\d\d\.\d{3}$"))
    assert page.locator("img").count() == 0
    names = page.locator("tbody a").all_inner_texts()
    assert names.index("POST /api/v1/orders") > names.index(
        missing.get_by_role("link").inner_text()
    )
    _press(placed.get_by_role("link"))
    expect(page.get_by_role("heading", name="POST /api/v1/orders")).to_be_focused()
    # What followed from it is a part.
    expect(page.get_by_title("order.placed:")).to_have_count(1)
    span = page.get_by_role("listitem").filter(has=page.get_by_title("INSERT orders", exact=True))
    _press(span.locator("summary"))
    expect(span.get_by_role("definition").last).to_contain_text("INSERT INTO orders (id")
    name, bar = span.get_by_title("INSERT orders"), span.locator(".bar")
    assert float(name.evaluate("it => parseFloat(it.style.paddingLeft)")) > 0
    track, filled = span.locator(".track").bounding_box(), bar.bounding_box()
    assert track
    assert filled
    assert track["x"] < filled["x"] < filled["x"] + filled["width"] < track["x"] + track["width"]
    assert ACCOUNT["email"] not in page.content()
    _picture(page, "traces")
    _press(page.get_by_role("link", name="All traces"))
    expect(placed.get_by_role("link")).to_be_focused()


def _press(button: Locator) -> None:
    """Use it with the keyboard, which shows where it is."""
    button.focus()
    button.press("Enter")


def _picture(page: Page, name: str) -> None:
    """See the page in both colours; `just screenshots` keeps what is seen."""
    page.set_viewport_size({"width": 1100, "height": 760})
    page.mouse.move(0, 0)
    grounds = set()
    for colours in ("light", "dark"):
        page.emulate_media(color_scheme=colours)
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        if page.locator("#swagger-ui").count():
            expect(page.locator("html.dark-mode")).to_have_count(int(colours == "dark"))
        if folder := os.environ.get("SCREENSHOTS"):
            path = Path(folder) / f"{name}-{colours}.png"
            page.screenshot(path=path, animations="disabled", caret="hide")
    assert len(grounds) == 2
    page.emulate_media(color_scheme="light")
