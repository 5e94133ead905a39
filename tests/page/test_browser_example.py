"""examples/browser: a page of another origin publishes and follows a task over gRPC-Web, in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from computemesh.cli.cluster import Cluster
from computemesh.client import Client
from tests.client.npm import ROOT, installed
from tests.edge.conftest import EdgeStarter
from tests.page.conftest import WAIT_MS

SOURCE = ROOT / "examples" / "browser"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The example, built from the contracts."""
    build = installed("browser")
    shutil.copy(SOURCE / "buf.gen.yaml", build)
    environment = {**os.environ, "PROTO": os.path.relpath(ROOT / "proto", build)}
    made = subprocess.run(["npm", "run", "--silent", "build"], cwd=build, env=environment, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    shutil.copy(SOURCE / "index.html", build / "page")
    return build / "page"


@pytest.fixture
def origin(folder: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_elsewhere_publishes_and_follows_over_grpc_web(
    browser: Browser, cluster: Cluster, client: Client, start_edge: EdgeStarter, origin: str
) -> None:
    edge = start_edge(cors_origins=(origin,))
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    types: list[str] = []
    page.on("response", lambda response: types.append(response.headers.get("content-type", "")))
    page.goto(origin)
    page.fill("[name=edge]", f"http://{edge}")
    page.click("button")
    expect(page.locator("output")).to_contain_text("refused")
    page.fill("[name=key]", cluster.profile.api_key or "")
    page.fill("[name=size]", "0")
    page.click("button")
    expect(page.locator("output")).to_contain_text("matrix_size")
    page.fill("[name=size]", "256")
    page.click("button")
    expect(page.locator("output")).to_contain_text("COMPLETED")
    task_id, _, result = page.locator("output").inner_text().split()
    assert client.get(task_id).result_hash == result
    assert "1 of 1 jobs settled" in page.locator("#events").inner_text()
    assert any(kind.startswith("application/grpc-web") for kind in types)
    page.close()
