#!/usr/bin/env bash
# Runs one fuzz target.
#   deploy/fuzz.sh PACKAGE TARGET TIME
# Go up to 1.26 may tell the end of the time as a failure of the target (https://go.dev/issue/75804), the more often the busier the machine: then it is
# run again. A real finding is a failing input, which is written, or says something else.
set -euo pipefail
tries=3
for ((try = 1; ; try++)); do
  echo "$2 in $1"
  if out=$(go test -run '^$' -fuzz "^$2\$" -fuzztime "$3" "$1" </dev/null 2>&1); then
    tail -1 <<<"$out"
    exit 0
  fi
  said=$(grep -vE '^(fuzz: (elapsed|minimizing)|--- FAIL: '"$2"' \(|[[:space:]]*context deadline exceeded$|FAIL|exit status)' <<<"$out" || true)
  if [ "$try" -ge "$tries" ] || [ -n "$said" ] || ! grep -q 'context deadline exceeded' <<<"$out"; then
    echo "$out"
    exit 1
  fi
done
