"""List tasks over REST, page by page.

    python examples/rest/list.py [STATUS]     # e.g. completed
"""

import json
import os
import sys
import urllib.parse
import urllib.request

URL = os.environ.get("COMPUTEMESH_URL", "http://127.0.0.1:7104")
KEY = os.environ.get("COMPUTEMESH_API_KEY")
LIMIT = 20

query = {"challenge_type": "synthetic", "limit": LIMIT, "offset": 0}
if len(sys.argv) > 1:
    query["status"] = sys.argv[1]
while True:
    request = urllib.request.Request(f"{URL}/tasks?{urllib.parse.urlencode(query)}")
    if KEY:
        request.add_header("Authorization", f"Bearer {KEY}")
    with urllib.request.urlopen(request, timeout=60) as response:
        page = json.load(response)
    for task in page["tasks"]:
        print(task["task_id"], task["status"], task["reward"])
    query["offset"] += LIMIT
    if query["offset"] >= page["total"]:
        print("total", page["total"])
        break
