#!/usr/bin/env bash
# Run a command on a SLURM cluster, one process for each GPU, and wait for it; exits as the command does.
#
#   launch/slurm.sh --name NAME [--nodes 1] [--gpus-per-node 8] [--cpus-per-task 8] [--partition P] [--account A]
#       [--time 24:00:00] [--dry-run] -- python -m melodjinn_jax.train --config CONFIG --workdir WORKDIR
#
# Run it in the checkout, on a file system that all nodes share; the same goes for WORKDIR. --gpus-per-node 0 runs on
# CPUs, one process a node. Two minutes before its time is up the job is asked to stop, saves, and is queued again; so
# is a job that is preempted, or whose node fails. What the command says lies in NAME-JOB.out, and is shown at the end.

source "$(dirname "$0")/common.sh"

nodes=1 gpus_per_node=8 cpus_per_task=8 partition="" account="" time=24:00:00
parse_options "--nodes --gpus-per-node --cpus-per-task --partition --account --time" "$@"
need sbatch

# JAX finds its processes by the variables of the step, and gives each one GPU.
options=(--job-name "$name" --nodes "$nodes" --ntasks-per-node "$((gpus_per_node > 0 ? gpus_per_node : 1))")
options+=(--cpus-per-task "$cpus_per_task" --time "$time")
((gpus_per_node == 0)) || options+=(--gpus-per-node "$gpus_per_node")
[ -z "$partition" ] || options+=(--partition "$partition")
[ -z "$account" ] || options+=(--account "$account")
options+=(--requeue --open-mode append --signal "TERM@120" --output "$name-%j.out" --wait)

# Since SLURM 22.05 a step does not get --cpus-per-task of its job by itself.
job="#!/usr/bin/env bash
srun --kill-on-bad-exit=1 --cpus-per-task $cpus_per_task $(quote "${command[@]}") && exit
status=\$?
# Asked to stop, and saved: the same command resumes.
[ \$status -ne 143 ] || scontrol requeue \"\$SLURM_JOB_ID\"
exit \$status"

if $dry_run; then
  quote sbatch "${options[@]}" "<<EOF" | sed "s/ [^ ]*EOF$/ <<'EOF'/"
  printf '%s\nEOF\n' "$job"
  exit
fi

# A job that nobody waits for any more must not go on: it saves, ends, and is not queued again.
job_id=""
# shellcheck disable=SC2317 # a trap calls it
stop() {
  trap '' TERM INT
  if [ -n "$job_id" ]; then
    scontrol update "JobId=$job_id" Requeue=0
    # One that has not begun has nothing to save.
    scancel --state PENDING "$job_id"
    scancel --signal TERM "$job_id"
    wait "$submitted"
  fi
  exit 143
}
trap stop TERM INT
exec 3< <(trap '' TERM INT && exec sbatch "${options[@]}" <<<"$job")
submitted=$!
read -r line <&3 || true
job_id=${line##* }
echo "$line"
status=0
wait "$submitted" || status=$?
cat "$name-$job_id.out" 2>/dev/null || true
exit "$status"
