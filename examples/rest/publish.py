"""Publish a task over REST and wait for its end: nothing but Python's own library.

    make run-cluster                    # in another terminal
    python examples/rest/publish.py

COMPUTEMESH_URL names another mesh, COMPUTEMESH_API_KEY the key it wants.
"""

import json
import os
import time
import urllib.request

URL = os.environ.get("COMPUTEMESH_URL", "http://127.0.0.1:7104")
KEY = os.environ.get("COMPUTEMESH_API_KEY")


def call(method, path, body=None):
    request = urllib.request.Request(URL + path, method=method, data=body and json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if KEY:
        request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


task = call("POST", "/tasks", {
    "challenge_type": "synthetic",
    "payload": {"matrix_size": 256, "iterations": 1},
    "reward": "1.5",
    "deadline": int(time.time()) + 3600,
})
print("published", task["task_id"], "reward", task["reward"])

while task["status"] in ("TASK_STATUS_PENDING", "TASK_STATUS_IN_PROGRESS"):
    time.sleep(0.2)
    task = call("GET", f"/tasks/{task['task_id']}")
print(task["status"], "result", task["result_hash"])
