#!/bin/bash
# Signs odd messages and has a verifier that is not ours judge them: dkimpy (Debian: python3-dkim python3-nacl).
set -euo pipefail
cd "$(dirname "$0")/../.."
. scripts/env

if ! /usr/bin/python3 -c 'import dkim, nacl' 2>/dev/null; then
    echo "dkim: python3-dkim and python3-nacl are needed: apt-get install python3-dkim python3-nacl" >&2
    exit 1
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cargo run --quiet -p dkim-signer --example samples -- "$folder"
/usr/bin/python3 tests/dkim/verify.py --signatures 2 "$folder/dns.json" "$folder"/*.eml
