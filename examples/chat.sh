#!/usr/bin/env bash
# A chat with curl: first whole, then as a stream of server-sent events.
set -euo pipefail

body() {
    printf '{"messages": [{"role": "user", "content": "What is the capital of %s?"}], "temperature": 0, "stream": %s}' "$1" "$2"
}

curl --silent --show-error http://127.0.0.1:8000/v1/chat/completions \
    --header 'Content-Type: application/json' --data "$(body Spain false)"
echo

curl --silent --show-error --no-buffer http://127.0.0.1:8000/v1/chat/completions \
    --header 'Content-Type: application/json' --data "$(body Norway true)"
