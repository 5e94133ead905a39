"""Pictures of the web page for the documents, from a live mesh: `python -m tests.page.screenshots FOLDER`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from tests.page.conftest import ARGUMENTS, CHROMIUM, WAIT_MS

RENDERING = {"scene": "spheres", "width": 384, "height": 256, "samples_per_pixel": 24, "seed": "picture"}
SWEEP = {"feed": [0.022, 0.03, 0.0367, 0.05], "kill": [0.051, 0.058, 0.0649, 0.062], "width": 48, "height": 48}
SIMULATION = {"system": "reaction_diffusion", "steps": 1500, "frames": 12, "seed": "picture", "parameters": SWEEP}
TALL, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
LIMIT_S = 300


def main() -> None:
    """Writes every picture; about two minutes on two processor cores."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    with (tempfile.TemporaryDirectory() as data, Cluster(data, workers=2, port_base=0, edge_port=0) as cluster,
          sync_playwright() as playwright):  # fmt: skip
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        origin = f"http://{cluster.address('edge')}"
        rendered, simulated, height = work(cluster)
        page = opened(browser, TALL)
        visit(page, origin, f"tasks/{rendered}")
        page.wait_for_selector("figure img")
        shoot(page, folder / "task.png")
        receipt(page, folder)
        visit(page, origin, f"blocks/{height}")
        page.wait_for_selector("main dl")
        shoot(page, folder / "block.png")
        visit(page, origin, "")
        live(cluster, page)
        shoot(page, folder / "overview.png")
        phone = opened(browser, PHONE, "dark")
        visit(phone, origin, f"tasks/{simulated}")
        phone.wait_for_selector("figure img")
        shoot(phone, folder / "phone-dark.png")
        browser.close()


def work(cluster: Cluster) -> tuple[str, str, int]:
    """Task ids of a rendering and a simulation that are done, and the block of the former."""
    with Client(cluster.profile) as client:
        rendered = client.run("rendering", RENDERING, "12.0", timeout=LIMIT_S)
        simulated = client.run("simulation", SIMULATION, "6.0", timeout=LIMIT_S)
        return rendered.task_id, simulated.task_id, rendered.block_height


def live(cluster: Cluster, page: Page) -> None:
    """Some seconds of work for the throughput to show, the last of it still going on."""
    with Client(cluster.profile) as client:
        for number in range(36):
            task = client.submit("synthetic", {"matrix_size": 256}, "1.5")
            if number % 3 == 0:
                task.wait(LIMIT_S)
        for _ in range(2):
            client.submit("simulation", {**SIMULATION, "steps": 40_000}, "6.0")
        page.locator("main table .badge.run").first.wait_for()


def receipt(page: Page, folder: Path) -> None:
    page.click("#verify")
    page.wait_for_selector(".verdict.good")
    shoot(page, folder / "receipt-verified.png", full=True)
    page.click("#tamper")
    page.wait_for_selector(".verdict.bad")
    shoot(page, folder / "receipt-tampered.png", full=True)


def opened(browser: Browser, size: dict[str, int], scheme: str = "light") -> Page:
    context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
    context.set_default_timeout(WAIT_MS)
    return context.new_page()


def visit(page: Page, origin: str, view: str) -> None:
    page.goto(f"{origin}/#/{view}")
    page.wait_for_selector("main h1")


def shoot(page: Page, path: Path, full: bool = False) -> None:
    page.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    page.screenshot(path=path, full_page=full)
    with Image.open(path) as image:
        image.save(path, optimize=True)
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
