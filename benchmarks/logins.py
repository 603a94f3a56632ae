"""What logins cost others, and what they tell by their time, of a service that is running.

Start the service with its limits out of the way, such as with
RATE_LIMIT_REQUESTS=1000000 LOGIN_FAILURES_PER_ACCOUNT=1000 LOGIN_FAILURES_PER_ADDRESS=100000,
and with one account, then run:

    python benchmarks/logins.py http://127.0.0.1:8000 ada@example.com 'her password'
"""

import argparse
import http.client
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode, urlsplit

LOGINS_AT_ONCE = 20
ROUNDS = 5
PROBES = 300
PROBE_SECONDS = 0.005
PAIRS = 150


class Service:
    """A connection to the service; each thread needs its own."""

    def __init__(self, url: str) -> None:
        """Name the service; nothing connects before the first request."""
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port)

    def live(self) -> float:
        """Ask whether it is alive; the seconds that took."""
        return self._time("GET", "/health/live", None, {200})

    def log_in(self, email: str, password: str, expected: set[int]) -> float:
        """Log in, or fail to; the seconds that took."""
        form = urlencode({"username": email, "password": password})
        return self._time("POST", "/api/v1/auth/token", form, expected)

    def _time(self, method: str, path: str, body: str | None, expected: set[int]) -> float:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if body else {}
        began = time.perf_counter()
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        response.read()
        seconds = time.perf_counter() - began
        if response.status not in expected:
            raise SystemExit(f"{method} {path} answered {response.status}")
        return seconds


@contextmanager
def logins(url: str, email: str, password: str) -> Iterator[list[float]]:
    """Keep logins under way; the seconds of each that has ended."""
    stopping = threading.Event()
    seconds: list[float] = []

    def work() -> None:
        service = Service(url)
        while not stopping.is_set():
            seconds.append(service.log_in(email, password, {200}))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(LOGINS_AT_ONCE)]
    for thread in threads:
        thread.start()
    try:
        yield seconds
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def probe(url: str) -> list[float]:
    """Ask again and again whether the service is alive."""
    service = Service(url)
    seconds = []
    for _ in range(PROBES):
        seconds.append(service.live())
        time.sleep(PROBE_SECONDS)
    return seconds


def percentile(values: list[float], percent: float) -> float:
    """The value that this share of the others does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))]


def measure_stalls(url: str, email: str, password: str) -> None:
    """Compare liveness with and without logins; the rounds alternate, as machines are noisy."""
    idle: list[float] = []
    busy: list[float] = []
    done: list[float] = []
    for _ in range(ROUNDS):
        idle += probe(url)
        with logins(url, email, password) as seconds:
            time.sleep(0.5)
            busy += probe(url)
        done += seconds
    for name, values in (("idle", idle), (f"with {LOGINS_AT_ONCE} logins", busy)):
        p50, p99 = percentile(values, 50) * 1000, percentile(values, 99) * 1000
        print(f"GET /health/live {name}: p50 {p50:.2f} ms, p99 {p99:.2f} ms")
    print(f"p99 ratio {percentile(busy, 99) / percentile(idle, 99):.1f}; {len(done)} logins,")
    print(f"each {statistics.median(done) * 1000:.0f} ms at the median")


def measure_reveal(url: str, email: str) -> None:
    """Compare failed logins of a known and of an unknown account, in turns."""
    service = Service(url)
    known: list[float] = []
    unknown: list[float] = []
    for number in range(PAIRS):
        known.append(service.log_in(email, "not the password", {401}))
        unknown.append(service.log_in(f"nobody-{number}@example.com", "not the password", {401}))
    for name, values in (("known", known), ("unknown", unknown)):
        median, spread = statistics.median(values) * 1000, statistics.stdev(values) * 1000
        print(f"failed login, {name} account: median {median:.2f} ms, deviation {spread:.2f} ms")
    differences = [one - other for one, other in zip(known, unknown, strict=True)]
    error = statistics.stdev(differences) / PAIRS**0.5
    mean = statistics.mean(differences)
    print(f"difference {mean * 1000:+.2f} ms, {abs(mean) / error:.1f} standard errors")


def main() -> None:
    """Measure both and print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("email")
    parser.add_argument("password")
    arguments = parser.parse_args()
    measure_stalls(arguments.url, arguments.email, arguments.password)
    measure_reveal(arguments.url, arguments.email)


if __name__ == "__main__":
    main()
