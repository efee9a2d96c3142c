#!/usr/bin/env bash
# Runs groups of the kit of real clients against a fresh three-node cluster on the default ports.
#   deploy/conformance.sh KIT GROUP...
# Tests on the list of those that may fail (loadtest/conformance/allow.txt) are not waited for: most of them need what is not served, and fail by
# waiting. Those of `python` are not run, unless ALLOWED is set: then one that passes by now is told. Where others of a group go on when all that has to
# pass has been told (franz-go's transactions, until its limit of five minutes), the next group begins beside them.
# A group that fails is run once more, alone, and fails if it fails again: its programs have time limits of their own, and races of their own when they are
# starved (seen: kafka-python's only member of a group assigns before it has metadata, and never again; aiokafka's producer, not idempotent by default, writes
# twice when a leader that stood still for a second is replaced meanwhile). What failed first is shown.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kit=$1; shift
allow=loadtest/conformance/allow.txt
if [ ! -x "$kit/kit" ]; then
  echo "conformance: there is no kit at $kit; say where it is with KIT=path" >&2
  exit 2
fi
for group in "$@"; do [ -d "$kit/groups/$group" ] || { echo "conformance: the kit has no group '$group'" >&2; exit 2; }; done
data=$(mktemp -d "${TMPDIR:-/tmp}/sluice-conformance.XXXXXX")
cluster=
finish() {
  local status=$? job
  for job in $(jobs -p); do [ "$job" = "$cluster" ] || kill "$job" 2>/dev/null || true; done
  if [ -n "$cluster" ]; then kill "$cluster" 2>/dev/null || true; wait "$cluster" 2>/dev/null || true; fi
  if [ "$status" = 0 ]; then rm -rf "$data"; else echo "conformance: logs and data are left in $data" >&2; fi
}
trap finish EXIT

may_fail() { sed -n "s|^$1/\([^ ]*\).*|\1|p" "$allow"; }  # GROUP: names of tests

# The kit's file.name_parameters is test_file.py::test_name[parameters] to pytest: where the name ends is not told, so each end is given.
not_run() {
  local test file rest i
  for test in $(may_fail python); do
    file=${test%%.*} rest=${test#*.}
    printf -- '--deselect=test_%s.py::test_%s ' "$file" "$rest"
    for ((i = 1; i < ${#rest} - 1; i++)); do
      [ "${rest:i:1}" != _ ] || printf -- '--deselect=test_%s.py::test_%s[%s] ' "$file" "${rest:0:i}" "${rest:i+1}"
    done
  done
}
[ -n "${ALLOWED:-}" ] || PYTEST_ADDOPTS="${PYTEST_ADDOPTS:-} $(not_run)"
export PYTEST_ADDOPTS=${PYTEST_ADDOPTS:-}

told() {  # GROUP: has every test been told that has to pass?
  local results=$data/$1/$1.results baseline=$kit/groups/$1/baseline.txt
  [ -e "$baseline" ] && [ -e "$results" ] &&
    [ -z "$(comm -23 <(sort "$baseline") <({ may_fail "$1"; sed 's/^[A-Z]* \([^:]*\).*/\1/' "$results"; } | sort))" ]
}

for try in 1 2 3; do # it fetches packages
  if "$kit/kit" setup "$@"; then break; fi
  [ "$try" -lt 3 ] || exit 1
  sleep 5
done
deploy/cluster.sh "$data" >"$data/cluster.out" 2>&1 &
cluster=$!
until grep -q '^sluice cluster:' "$data/cluster.out"; do
  kill -0 "$cluster" 2>/dev/null || { cat "$data/cluster.out" >&2; exit 1; }
  sleep 0.1
done
run() {  # GROUP DIRECTORY
  "$kit/kit" run -b 127.0.0.1:9092,127.0.0.1:9192,127.0.0.1:9292 -r 3 -m 127.0.0.1:1883 -a "$allow" -o "$2" "$1"
}
declare -A runs
for group in "$@"; do
  began=$SECONDS
  run "$group" "$data/$group" >"$data/$group.out" 2>&1 &
  runs[$group]=$!
  while kill -0 "${runs[$group]}" 2>/dev/null && ! told "$group"; do sleep 1; done
  echo "== $group: $((SECONDS - began)) s"
done
failed=()
for group in "$@"; do
  wait "${runs[$group]}" || failed+=("$group")
  cat "$data/$group.out"
done
status=0
for group in "${failed[@]}"; do
  echo "conformance: $group has failed, and is run once more"
  run "$group" "$data/$group-again" || status=1
done
exit "$status"
