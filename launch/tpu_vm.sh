#!/usr/bin/env bash
# Run a command on a Cloud TPU slice that a queued resource brings, and give the slice back; exits as the command does.
#
#   launch/tpu_vm.sh --name NAME --zone us-west4-a --accelerator-type v5litepod-16 [--spot] [--project P]
#       [--runtime-version v2-alpha-tpuv5-lite] [--nfs SERVER:/SHARE] [--mount /mnt/melodjinn] [--preemptions 100]
#       [--dry-run] -- .venv/bin/python -m melodjinn_jax.train --config CONFIG --workdir /mnt/melodjinn/WORKDIR
#
# Run it in the checkout, which is copied to every worker. --nfs is a share that all workers mount at --mount: WORKDIR
# and DATASET must lie there, for a slice's own disks go with it. A slice that is preempted is replaced by a new one, on
# which the same command resumes.

source "$(dirname "$0")/common.sh"

zone="" accelerator_type="" project="" runtime_version=v2-alpha-tpuv5-lite nfs="" mount=/mnt/melodjinn preemptions=100
spot=false
parse_options "--zone --accelerator-type --project --runtime-version --nfs --mount --preemptions --spot" "$@"
require --zone --accelerator-type
need gcloud
poll_seconds=${MELODJINN_POLL_SECONDS:-30}

where=(--zone "$zone")
[ -z "$project" ] || where+=(--project "$project")
create=(--node-id "$name" --accelerator-type "$accelerator_type" --runtime-version "$runtime_version")
! $spot || create+=(--spot)

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format "value(state.state)" 2>/dev/null || true
}

on_workers() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker all --command "$1"
}

give_back() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet || true
}

wait_until_active() {
  $dry_run && quote gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format "value(state.state)" &&
    return
  local now
  while now=$(state) && [ "$now" != ACTIVE ]; do
    case $now in FAILED | SUSPENDED | SUSPENDING) return 1 ;; esac
    sleep "$poll_seconds"
  done
}

# The checkout's committed files, a Python that is new enough with JAX for TPUs, and the share.
prepare_workers() {
  local archive=/tmp/$name.tar.gz
  run git archive --format tar.gz --output "$archive" HEAD
  run gcloud compute tpus tpu-vm scp "$archive" "$name:melodjinn.tar.gz" "${where[@]}" --worker all
  local setup="mkdir -p melodjinn && tar xzf melodjinn.tar.gz -C melodjinn"
  [ -z "$nfs" ] || setup+=" && sudo apt-get install -y nfs-common && sudo mkdir -p $mount && sudo mount -t nfs $nfs $mount"
  setup+=" && cd melodjinn && python3 -m pip install -q uv && python3 -m uv venv -q --python 3.12"
  on_workers "$setup && python3 -m uv pip install -q 'jax[tpu]' ."
}

# All of one slice's life but its end. 75: it was lost, and another one may do.
use_slice() {
  run gcloud compute tpus queued-resources create "$name" "${where[@]}" "${create[@]}" || return
  wait_until_active || return 75
  prepare_workers || lost || return
  on_workers "cd melodjinn && exec $(quote "${command[@]}")" || lost
}

# After a failure: 75 if it is the slice's, else the failure's own status.
lost() {
  local status=$?
  [ "$(state)" = ACTIVE ] && [ "$status" -ne 143 ] && return "$status"
  return 75
}

trap 'exit 143' TERM INT
$dry_run || trap give_back EXIT
for ((slice = 0; slice <= preemptions; slice++)); do
  status=0
  use_slice || status=$?
  [ "$status" -eq 75 ] || break
  echo "$name: the slice was lost; asking for another" >&2
  give_back
  sleep "$poll_seconds"
done
$dry_run && give_back
exit "$status"
