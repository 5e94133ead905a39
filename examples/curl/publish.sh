#!/usr/bin/env bash
# Publishes a task over REST, follows it line by line, fetches its result and lists the newest tasks: curl and jq.
#
#   make run-cluster                 # in another terminal
#   examples/curl/publish.sh [FOLDER] [REWARD]
#
# COMPUTEMESH_URL names another mesh, COMPUTEMESH_API_KEY the key it wants. Exit status 0 if the task was completed and
# its files have the digests that it names.
set -euo pipefail

URL=${COMPUTEMESH_URL:-http://127.0.0.1:7104}
# A refusal is shown: its body says which field is at fault.
rest() { curl --silent --show-error --fail-with-body --no-buffer ${COMPUTEMESH_API_KEY:+-H "Authorization: Bearer $COMPUTEMESH_API_KEY"} "$@"; }

FOLDER=${1:-results}
order=$(jq -n --arg reward "${2:-1.5}" '{challenge_type: "simulation", reward: $reward, deadline: (now + 3600 | floor),
  payload: {system: "ode", steps: 40, frames: 2, parameters: {equation: "lorenz"}}}')
published=$(rest -H 'Content-Type: application/json' -d "$order" "$URL/tasks") || { jq -r .message <<<"$published" >&2; exit 1; }
task=$(jq -r .task_id <<<"$published")
echo "published $task"

# NDJSON: an event a line, until the task has ended.
rest "$URL/tasks/$task:watch" | jq -r --unbuffered '.task | "  \(.status): \(.jobs_settled) of \(.jobs_total) jobs settled"'

ended=$(rest "$URL/tasks/$task")
[ "$(jq -r .status <<<"$ended")" = TASK_STATUS_COMPLETED ] || { jq -r .status_detail <<<"$ended" >&2; exit 1; }

# Bytes come in lines, each with a base64 chunk.
mkdir -p "$FOLDER"
jq -r '.artifacts[] | "\(.digest) \(.name)"' <<<"$ended" | while read -r digest name; do
  file=$FOLDER/$(basename "$name")
  rest "$URL/artifacts/$digest/content" | jq -r .chunk | while read -r chunk; do base64 -d <<<"$chunk"; done > "$file"
  sha256sum --check --quiet <<<"$digest  $file"
  echo "  $file has the digest that the task names"
done

echo "newest tasks"
rest "$URL/tasks?challenge_type=simulation&limit=5" | jq -r '(.tasks[] | "  \(.task_id[:12]) \(.status) \(.reward)"), "total \(.total)"'
