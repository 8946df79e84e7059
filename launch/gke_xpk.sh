#!/usr/bin/env bash
# Run a command on TPU slices of a GKE cluster by xpk, and wait for it; exits 0 if it ended well.
#
#   launch/gke_xpk.sh --name NAME --cluster CLUSTER --tpu-type v5litepod-16 --image IMAGE [--num-slices 1]
#       [--storage STORAGE] [--project P] [--zone Z] [--max-restarts 100] [--timeout 604800] [--spot] [--dry-run]
#       -- python3 -m melodjinn_jax.train --config CONFIG --workdir WORKDIR
#
# IMAGE holds the checkout (launch/Dockerfile). STORAGE names an `xpk storage` with a shared file system, which the
# pods mount and on which WORKDIR lies. A pod that is evicted is asked to stop and has five minutes to save; the job
# set starts again by itself, up to --max-restarts times, and resumes.

source "$(dirname "$0")/common.sh"

cluster="" tpu_type="" image="" num_slices=1 storage="" project="" zone="" max_restarts=100 timeout=604800 spot=false
parse_options "--cluster --tpu-type --image --num-slices --storage --project --zone --max-restarts --timeout --spot" "$@"
require --cluster --tpu-type --image
need xpk

where=(--cluster "$cluster")
[ -z "$project" ] || where+=(--project "$project")
[ -z "$zone" ] || where+=(--zone "$zone")
create=(--workload "$name" --tpu-type "$tpu_type" --num-slices "$num_slices" --docker-image "$image")
# An exec, so that the signal that asks to stop reaches the command itself.
create+=(--command "exec $(quote "${command[@]}")" --max-restarts "$max_restarts")
create+=(--termination-grace-period-seconds 300)
[ -z "$storage" ] || create+=(--storage "$storage")
! $spot || create+=(--spot)

trap 'exit 143' TERM INT
# --quiet replaces what an earlier attempt has left under this name.
run xpk workload create "${where[@]}" "${create[@]}" --quiet
run xpk workload list "${where[@]}" --wait-for-job-completion "$name" --timeout "$timeout"
