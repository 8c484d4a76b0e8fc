#!/bin/bash
# Makes reports on odd messages and replies, and has three readers that are not ours read them.
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cargo run --quiet -p relay --example reports -- "$folder"
/usr/bin/python3 tests/dsn/check.py --max-bytes 20000 "$folder"/*.eml
/usr/bin/python3 tests/dsn/readers.py "$folder"/*.eml
