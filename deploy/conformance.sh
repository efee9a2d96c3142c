#!/usr/bin/env bash
# Runs groups of the kit of real clients against a fresh three-node cluster on the default ports.
#   deploy/conformance.sh KIT GROUP...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kit=$1; shift
if [ ! -x "$kit/kit" ]; then
  echo "conformance: there is no kit at $kit; say where it is with KIT=path" >&2
  exit 2
fi
for group in "$@"; do [ -d "$kit/groups/$group" ] || { echo "conformance: the kit has no group '$group'" >&2; exit 2; }; done
data=$(mktemp -d "${TMPDIR:-/tmp}/sluice-conformance.XXXXXX")
cluster=
finish() {
  local status=$?
  if [ -n "$cluster" ]; then kill "$cluster" 2>/dev/null || true; wait "$cluster" 2>/dev/null || true; fi
  if [ "$status" = 0 ]; then rm -rf "$data"; else echo "conformance: logs and data are left in $data" >&2; fi
}
trap finish EXIT
"$kit/kit" setup "$@"
deploy/cluster.sh "$data" >"$data/cluster.out" 2>&1 &
cluster=$!
until grep -q '^sluice cluster:' "$data/cluster.out"; do
  kill -0 "$cluster" 2>/dev/null || { cat "$data/cluster.out" >&2; exit 1; }
  sleep 0.1
done
"$kit/kit" run -b 127.0.0.1:9092,127.0.0.1:9192,127.0.0.1:9292 -r 3 -m 127.0.0.1:1883 -a loadtest/conformance/allow.txt -o "$data/kit" "$@"
