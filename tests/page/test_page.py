"""The web page in a real browser, on a live cluster: publish, watch, look, verify, and be refused."""

from __future__ import annotations

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from computemesh.trust.receipt import Receipt, accepted, verify
from computemesh.v1 import orchestrator_pb2 as pb
from tests.edge.conftest import ROOT
from tests.orchestrator.scripted import ScriptedWorker
from tests.page.conftest import Visit

PARAMETERS = {"width": 32, "height": 32, "feed": [0.022, 0.03, 0.0367, 0.05], "kill": [0.051, 0.058, 0.0649, 0.062]}
PAYLOAD = {"system": "reaction_diffusion", "steps": 400, "frames": 8, "seed": "page", "parameters": PARAMETERS}
JOBS = 4
MAX_PAGE_BYTES = 300_000
VIEWS = ("", "tasks", "publish", "workers", "blocks", "blocks/1", "account", "disputes", "verify")


def test_a_task_is_published_watched_looked_at_verified_and_not_forged(visit: Visit, tmp_path: Path) -> None:
    page = visit.go("publish")
    page.select_option("#type", "simulation")
    page.fill("#payload", json.dumps(PAYLOAD))
    page.click("#publish")
    page.wait_for_url("**/#/tasks/*")
    page.evaluate("""() => {
        window.seen = [];
        const bar = () => document.querySelector('main progress');
        const note = () => bar() && window.seen.push(bar().value);
        new MutationObserver(note).observe(document.querySelector('main'), {childList: true, subtree: true});
    }""")
    for name in ("plot.png", "animation.webp"):
        picture = page.locator(f"figure img[alt='Result: {name}']")
        expect(picture).to_be_visible()
        assert page.evaluate("image => image.decode().then(() => image.naturalWidth)", picture.element_handle()) > 64
    seen = page.evaluate("window.seen")
    assert seen == sorted(seen)
    assert seen[0] < seen[-1] == JOBS, "the bar moves from nothing to all jobs"

    page.click("#verify")
    expect(page.locator(".verdict.good")).to_contain_text("Verified")
    assert page.locator(".steps .ok").count() == 8 + JOBS * 8
    with page.expect_download() as download:
        page.click("#save-receipt")
    download.value.save_as(tmp_path / "receipt.json")
    receipt = Receipt.from_json((tmp_path / "receipt.json").read_bytes())
    assert accepted(verify(receipt, receipt.vkey)), "what the page saves is what others verify"

    parts = page.locator("#part option").count()
    for part in range(0, parts, 5):
        page.select_option("#part", str(part))
        page.click("#tamper")
        expect(page.locator(".verdict.bad")).to_contain_text("Refused")
        assert page.locator(".steps .no").count() >= 1
        page.click("text=Restore")
        expect(page.locator(".verdict.good")).to_be_visible()


def test_a_receipt_file_is_judged_by_the_key_its_reader_trusts(visit: Visit, cluster: Cluster, tmp_path: Path) -> None:
    with Client(cluster.profile) as client:
        handle = client.submit("synthetic", {"matrix_size": 64}, "1.0")
        handle.wait(120)
        file = tmp_path / "receipt.json"
        file.write_text(client.receipt(handle.task_id).to_json(), "utf-8")
    page = visit.go("verify")
    page.set_input_files("#file", file)
    expect(page.locator(".verdict")).to_contain_text("Consistent, by its own key")
    page.fill("#vkey", "computemesh-local/blocks+5c0bbc5b+AW5kNKFzvMnqhJTKmJHNcvrqbNvgh1XAZ8RTXNL7lUE6")
    page.set_input_files("#file", [])
    page.set_input_files("#file", file)
    expect(page.locator(".verdict.bad")).to_contain_text("Refused")
    page.fill("#vkey", cluster.profile.ledger_vkey)
    page.set_input_files("#file", [])
    page.set_input_files("#file", file)
    expect(page.locator(".verdict.good")).to_contain_text("Verified")


def test_bad_input_is_refused_at_its_field(visit: Visit) -> None:
    page = visit.go("publish")
    page.fill("#reward", "a lot")
    page.click("#publish")
    expect(page.locator("[role=alert]")).to_contain_text("reward")
    assert page.get_attribute("#reward", "aria-invalid") == "true"
    page.fill("#reward", "1.0")
    page.fill("#payload", "{")
    page.click("#publish")
    expect(page.locator("[role=alert]")).to_contain_text("not JSON")
    visit.faults.clear()  # the browser notes each refusal in its console


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_has_a_serious_violation_of_accessibility(visit: Visit, scheme: str) -> None:
    axe = Axe()
    visit.page.emulate_media(color_scheme=scheme)
    visit.page.set_viewport_size({"width": 390, "height": 844} if scheme == "dark" else {"width": 1280, "height": 860})
    for view in VIEWS:
        page = visit.go(view)
        page.wait_for_selector("main table, main form, main .empty, main dl, main [role=alert]")
        assert page.locator("main [role=alert]").all_inner_texts() == [], view
        found = axe.run(page).response["violations"]
        serious = [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
        assert serious == [], view
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{view} scrolls sideways by {wide} px"


def test_a_worker_that_left_is_still_listed(visit: Visit, cluster: Cluster, client: Client) -> None:
    def wait_until_listed(address: str) -> None:
        every = pb.ListWorkersRequest(page_size=1000)
        while address not in [one.address for one in client.orchestrator("ListWorkers", every).workers]:
            time.sleep(0.05)

    async def join_and_leave() -> str:
        async with ScriptedWorker(cluster.profile.orchestrator, cluster.profile.chain_id) as worker:
            address = (await worker.join()).key.address
            await asyncio.to_thread(wait_until_listed, address)
            return address

    # This thread has a running loop already: the browser's.
    with ThreadPoolExecutor(1) as pool:
        address = pool.submit(asyncio.run, join_and_leave()).result(60)
    page = visit.go("workers")
    expect(page.locator(f"tr:has(a[href$='{address}'])")).to_contain_text("gone")


def test_everything_is_reached_by_keyboard(visit: Visit) -> None:
    page = visit.go("publish")
    reached = set()
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert {"Skip to content", "Overview", "Tasks", "type", "payload", "reward", "deadline", "publish"} <= reached


def test_the_page_is_light() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "dashboard").rglob("*") if path.is_file()) < MAX_PAGE_BYTES
