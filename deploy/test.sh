#!/usr/bin/env bash
# go test, and once more what may have failed for want of time.
#   AGAIN=N deploy/test.sh GO-TEST-FLAGS... PACKAGES
# Where at most N tests have failed (default 0), each of them is run once more, by itself, and counts as failed when it fails again: on a machine that is
# shared or stands still for seconds, a test of elections may run out of patience. A panic, a data race, a deadline of the whole package or a package that
# does not build is never run again. Both outcomes are shown, and the last line names what needed a second run.
set -euo pipefail
flags=("${@:1:$#-1}") packages=${*: -1}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if go test "$@" 2>&1 | tee "$log"; then exit 0; fi

# One line for each package that has failed, and behind it the tests that did; "!" is something that no second run may hide.
failed=$(awk -F '\t' '
  /^--- FAIL: /                                                            { split($0, word, " "); names = names " " word[3] }
  /^(panic: |fatal error: |WARNING: DATA RACE)|race detected during execution/ { hard = 1 }
  /^(ok  |\?   )\t/                                                        { names = ""; hard = 0 }
  /^FAIL\t/                                                                { split($2, word, " "); print word[1] (hard || names == "" ? " !" : names); names = ""; hard = 0 }
' "$log")
if [ -z "$failed" ] || grep -q ' !' <<<"$failed" || [ "$(awk '{ n += NF - 1 } END { print n }' <<<"$failed")" -gt "${AGAIN:-0}" ]; then exit 1; fi
while read -r package names; do
  for name in $names; do
    echo "== once more, by itself: $name of $package"
    go test "${flags[@]}" -count=1 -run "^$name\$" "$package" </dev/null
  done
done <<<"$failed"
echo "== passed only when run once more:" $failed
