#!/bin/bash
# What the scripts of this folder share; they source it after `set -uo pipefail`, in the root of the checkout.
#
# run_step STOP_FILE COMMAND … runs a step of the job and ends the script with its exit code.
#   USR1 comes ten minutes before the time limit (--signal=B:USR1@600): the step is told to stop, then the job is queued again.
#   TERM comes with scancel and with preemption: the step is told to stop; whether the job is queued again, Slurm decides.
# A step with a STOP_FILE is told by that file, and saves a checkpoint; one without ("") gets SIGTERM, since it loses nothing.

# shellcheck source=/dev/null
source "${VENV:-.venv}/bin/activate"

# shellcheck disable=SC2034  # the scripts read it
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))
# shellcheck disable=SC2034
GPUS=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
export RAY_USAGE_STATS_ENABLED=0

# need NAME … ends the script where a variable is not set.
need() {
    local name missing=()
    for name in "$@"; do
        [ -n "${!name:-}" ] || missing+=("$name")
    done
    [ ${#missing[@]} -eq 0 ] && return
    echo "error: ${missing[*]} must be set: see the example at the head of the script, deploy/slurm/*.sh" >&2
    exit 2
}

run_step() {
    local stop_file=$1 received="" code
    shift
    "$@" &
    local step=$!
    trap 'received=USR1' USR1
    trap 'received=TERM' TERM
    while kill -0 "$step" 2>/dev/null; do
        [ -z "$received" ] || tell_to_stop "$stop_file" "$step"
        sleep 1 &
        wait $! # a signal interrupts it
    done
    wait "$step"
    code=$?
    if [ "$received" = USR1 ]; then
        echo "stopped before the time limit; job $SLURM_JOB_ID is queued again (restart $((${SLURM_RESTART_COUNT:-0} + 1)))"
        scontrol requeue "$SLURM_JOB_ID" || code=1
    fi
    exit "$code"
}

# Again and again: a training that is just starting removes an old STOP.
tell_to_stop() {
    if [ -n "$1" ]; then
        mkdir -p "${1%/*}" && touch "$1"
    else
        kill -TERM "$2" 2>/dev/null || true
    fi
}
