"""A real Chromium, Debian's, without a network of its own: what it asks for is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from computemesh.cli.cluster import Cluster
from tests.edge.conftest import start_edge as start_edge

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
WAIT_MS = 150_000
expect.set_options(timeout=WAIT_MS)


@dataclass
class Visit:
    """A page of the dashboard, with what it asked for, and what went wrong in it."""

    page: Page
    origin: str
    asked: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def go(self, view: str) -> Page:
        """Open a view, e.g. `tasks`, and wait for its heading."""
        self.page.goto(f"{self.origin}/#/{view}")
        self.page.wait_for_selector("main h1")
        return self.page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Ends with its module: while Playwright is up this thread counts as running an event loop, and no test that needs
    one of its own can run."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser, cluster: Cluster) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    made = Visit(page, f"http://{cluster.address('edge')}")
    page.on("request", lambda request: made.asked.append(request.url))
    page.on("pageerror", lambda error: made.faults.append(str(error)))
    page.on("console", lambda message: made.faults.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert made.faults == []
    outside = [url for url in made.asked if not url.startswith((made.origin + "/", "blob:", "data:"))]
    assert outside == [], "the page asks its own origin only"
