#!/usr/bin/env bash
# Three core nodes and a gateway as separate processes on this machine, until Ctrl-C or SIGTERM.
#   deploy/cluster.sh [DATA]      DATA defaults to .data/cluster
# Ports: Kafka 9092 9192 9292, node-to-node 9093 9193 9293, core HTTP 9644 9744 9844, MQTT 1883, WebSocket 8083, edge HTTP 8080;
# OFFSET=n moves them all by n. DATA/core-N.pid and DATA/edge.pid hold the processes' ids, DATA/core-N.sh and DATA/edge.sh start
# one of them again, DATA/*.log is what they said. A child that dies is left dead.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "${1:-.data/cluster}"
data=$(cd "${1:-.data/cluster}" && pwd)
offset=${OFFSET:-0}
bin=${SLUICE_BIN:-$here/bin}
ready_within_s=120 # a start takes about a second; a long replay after a crash may take more
stop_within_s=30   # a clean stop hands leadership over and writes a checkpoint

kafka() { echo "127.0.0.1:$((9092 + offset + 100 * ($1 - 1)))"; }
node() { echo "127.0.0.1:$((9093 + offset + 100 * ($1 - 1)))"; }
http() { echo "127.0.0.1:$((9644 + offset + 100 * ($1 - 1)))"; }
mqtt=127.0.0.1:$((1883 + offset)) websocket=127.0.0.1:$((8083 + offset)) edge_http=127.0.0.1:$((8080 + offset))

others() { local n out=; for n in 1 2 3; do [ "$n" = "$1" ] || out+="${out:+,}$(node "$n")"; done; echo "$out"; }

write_start() {  # NAME COMMAND...: a script that becomes that process
  local name=$1; shift
  { echo '#!/bin/sh'
    echo "# Starts $name again: becomes the process and writes its id to $name.pid."
    printf 'echo $$ >%q.new && mv %q.new %q\nexec' "$data/$name.pid" "$data/$name.pid" "$data/$name.pid"
    printf ' %q' "$@"
    printf ' $JOIN >>%q 2>&1 </dev/null\n' "$data/$name.log"; } >"$data/$name.sh"
  chmod +x "$data/$name.sh"
}

# JOIN is left unset for a node that may look for its cluster; a founding first node is started with JOIN empty.
write_core() {
  write_start "core-$1" "$bin/sluice" core --id "$1" --data "$data/core-$1" --kafka "$(kafka "$1")" --node "$(node "$1")" --http "$(http "$1")" --rack "rack$1"
  sed -i "3i : \"\${JOIN=--join $(others "$1")}\"" "$data/core-$1.sh"
}

get_ok() {  # HOST:PORT PATH: does it answer 200?
  local status=
  exec 3<>"/dev/tcp/${1%:*}/${1#*:}" || return 1
  printf 'GET %s HTTP/1.0\r\nHost: %s\r\n\r\n' "$2" "$1" >&3
  read -r -t 5 status <&3 || true
  exec 3>&-
  [[ $status == *' 200 '* ]]
} 2>/dev/null

wait_ready() {  # NAME HOST:PORT
  local deadline=$((SECONDS + ready_within_s))
  until get_ok "$2" /healthz; do
    [ -z "$stopping" ] || return 1
    alive "$1" || { echo "cluster: $1 ended while starting; the end of $data/$1.log:" >&2; tail -5 "$data/$1.log" >&2; return 1; }
    [ "$SECONDS" -lt "$deadline" ] || { echo "cluster: $1 does not serve after $ready_within_s s; see $data/$1.log" >&2; return 1; }
    sleep 0.1
  done
}

# The pid file may be old and its number another program's by now: only a process that names its own data counts, or the script that is about to become it.
alive() {
  local pid; pid=$(cat "$data/$1.pid" 2>/dev/null) || return 1
  [ -n "$pid" ] && { tr '\0' ' ' <"/proc/$pid/cmdline"; } 2>/dev/null | grep -qF -e "--data $data/$1 " -e "$data/$1.sh "
}
# A process whose first thread has ended may have others that still hold its files, among them the lock on its data.
running() {  # PID
  local threads=(/proc/"$1"/task/*)
  [ -e "${threads[0]}" ] && { [ "${#threads[@]}" -gt 1 ] || ! grep -q '^State:[[:space:]]*[ZX]' "/proc/$1/status"; }
} 2>/dev/null
tell() { if alive "$2"; then kill -"$1" "$(cat "$data/$2.pid")" 2>/dev/null || true; fi; }

stop_all() {
  local name deadline
  local -A pids
  for name in edge core-1 core-2 core-3; do if alive "$name"; then pids[$name]=$(cat "$data/$name.pid"); fi; tell CONT "$name"; tell TERM "$name"; done
  deadline=$((SECONDS + stop_within_s))
  for name in "${!pids[@]}"; do
    while running "${pids[$name]}" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.05; done
    if alive "$name"; then echo "cluster: $name did not stop within $stop_within_s s, killed" >&2; tell KILL "$name"; fi
  done
}
stopping=
trap 'stopping=yes' INT TERM HUP
trap stop_all EXIT

for n in 1 2 3; do write_core "$n"; done
write_start edge "$bin/sluice" edge --data "$data/edge" --mqtt "$mqtt" --websocket "$websocket" --http "$edge_http" --core "$(kafka 1),$(kafka 2),$(kafka 3)"
for name in core-1 core-2 core-3 edge; do
  if alive "$name"; then echo "cluster: $name already runs with this data (pid $(cat "$data/$name.pid"))" >&2; trap - EXIT; exit 1; fi
  rm -f "$data/$name.pid"
done

if [ -e "$data/core-1" ]; then setsid "$data/core-1.sh" & else JOIN= setsid "$data/core-1.sh" & fi
setsid "$data/core-2.sh" & setsid "$data/core-3.sh" &
for n in 1 2 3; do
  until [ -s "$data/core-$n.pid" ] || [ -n "$stopping" ]; do sleep 0.02; done
  wait_ready "core-$n" "$(http "$n")" || exit 1
done
setsid "$data/edge.sh" &
until [ -s "$data/edge.pid" ] || [ -n "$stopping" ]; do sleep 0.02; done
wait_ready edge "$edge_http" || exit 1
echo "sluice cluster: Kafka $(kafka 1),$(kafka 2),$(kafka 3)  core HTTP http://$(http 1)  MQTT $mqtt  WebSocket ws://$websocket/mqtt  edge HTTP http://$edge_http  data $data"
while [ -z "$stopping" ]; do sleep 3600 & wait $! 2>/dev/null || true; done
kill $! 2>/dev/null || true
exit 0
