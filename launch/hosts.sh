#!/usr/bin/env bash
# Run a command on a list of hosts by ssh, one process each, as one training run; exits 0 if all end well.
#
#   launch/hosts.sh --name NAME --hosts FILE --dir CHECKOUT [--port 12355] [--restarts 10] [--dry-run]
#       -- .venv/bin/python -m melodjinn_jax.train --config CONFIG --workdir WORKDIR
#
# FILE has a host a line, the first of which the others must reach at --port. CHECKOUT is a folder on every host;
# WORKDIR and the DATASET must lie on a file system that all share. When the process of one host fails, those of all are
# stopped and started again, and resume, unless it exits 2, which is wrong input; the last failure is the script's exit
# status. When this script is asked to stop, so are they: they save first.

source "$(dirname "$0")/common.sh"

hosts="" dir="" port=12355 restarts=10
parse_options "--hosts --dir --port --restarts" "$@"
require --hosts --dir
[ -r "$hosts" ] || fail "--hosts $hosts: cannot be read"
need ssh
grace_seconds=${MELODJINN_GRACE_SECONDS:-60}

mapfile -t list < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$hosts")
[ ${#list[@]} -gt 0 ] || fail "--hosts $hosts: it names no host"

on_host() {
  run ssh -o BatchMode=yes -o ServerAliveInterval=15 "$1" "$2"
}

# The remote shell becomes the command, so that the number it has noted is the command's.
start() {
  local rank=$1 variables
  variables="JAX_COORDINATOR_ADDRESS=${list[0]}:$port JAX_NUM_PROCESSES=${#list[@]} JAX_PROCESS_ID=$rank"
  on_host "${list[$rank]}" "cd $(quote "$dir") && echo \$\$ > .$name-$rank.pid && exec env $variables $(quote "${command[@]}")"
}

# signal_all SIGNAL: to the processes that still run.
signal_all() {
  local rank
  for rank in "${!list[@]}"; do
    on_host "${list[$rank]}" "cd $(quote "$dir") && kill -$1 \$(cat .$name-$rank.pid)" 2>/dev/null || true
  done
}

# shellcheck disable=SC2317 # a trap calls it
stop() {
  trap '' TERM INT
  signal_all TERM
  wait
  exit 143
}

if $dry_run; then
  for rank in "${!list[@]}"; do start "$rank"; done
  exit
fi

trap stop TERM INT
for ((attempt = 0; attempt <= restarts; attempt++)); do
  for rank in "${!list[@]}"; do start "$rank" & done
  status=0
  for _ in "${list[@]}"; do
    # The others would wait for the one that failed for ever.
    wait -n || {
      status=$?
      break
    }
  done
  [ "$status" -ne 0 ] || exit 0
  # 2 is input that is refused, which no further start would mend.
  [ "$status" -ne 2 ] || restarts=$attempt
  echo "$name: a process failed; stopping all (start $((attempt + 1)) of $((restarts + 1)))" >&2
  signal_all TERM
  sleep "$grace_seconds"
  signal_all KILL
  wait || true
done
exit "$status"
