#!/bin/bash
# A run on all workers of a TPU slice (docs/hosts.md):
#   launch/tpu_vm.sh create            a queued request for a slice; on spot capacity with SPOT=1
#   launch/tpu_vm.sh install           this checkout and its environment, on all workers
#   launch/tpu_vm.sh train FLAGS...    starts the run on all workers, in the background
#   launch/tpu_vm.sh logs              what worker 0 says, as it comes
#   launch/tpu_vm.sh stop              SIGTERM to all workers: they save and end
#   launch/tpu_vm.sh watch FLAGS...    creates, installs and trains again whenever the slice was preempted
#   launch/tpu_vm.sh delete
# Environment: NAME, ZONE, TYPE (v5litepod-16 ...), VERSION (of the TPU software), PROJECT, SPOT, GCSFUSE=bucket.
# FLAGS must name --logdir, on storage that all workers share and that outlives the slice.

set -euo pipefail

NAME=${NAME:-jaxrl}
ZONE=${ZONE:?the zone of the slice, for example us-west4-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
where=(--zone "$ZONE")
[ -z "${PROJECT:-}" ] || where+=(--project "$PROJECT")
here=$(cd "$(dirname "$0")/.." && pwd)

on_all() { # a command on every worker
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=all --command "$1"
}

state() { # of the request: ACTIVE, SUSPENDED, FAILED ...; GONE if there is none
    gcloud compute tpus queued-resources describe "$NAME" "${where[@]}" --format='value(state.state)' \
        2>/dev/null || echo GONE
}

create() {
    local more=()
    [ -z "${SPOT:-}" ] || more+=(--spot)
    gcloud compute tpus queued-resources create "$NAME" "${where[@]}" --node-id "$NAME" \
        --accelerator-type "$TYPE" --runtime-version "$VERSION" "${more[@]}"
    until [ "$(state)" = ACTIVE ]; do
        case $(state) in FAILED | SUSPENDED | GONE)
            echo "tpu_vm.sh: the request is $(state)" >&2
            return 1
            ;;
        esac
        sleep 30
    done
}

delete() {
    gcloud compute tpus queued-resources delete "$NAME" "${where[@]}" --force --quiet
}

install() {
    local archive
    archive=$(mktemp --suffix=.tar.gz)
    git -C "$here" archive --format=tar.gz --output="$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$NAME:jaxrl.tar.gz" "${where[@]}" --worker=all
    rm -f "$archive"
    on_all "rm -rf jaxrl && mkdir jaxrl && tar -xzf jaxrl.tar.gz -C jaxrl && python3 -m venv env \
        && env/bin/pip install -q -U 'jax[tpu]' ./jaxrl"
    if [ -n "${GCSFUSE:-}" ]; then
        on_all "sudo mkdir -p /shared && sudo chmod 777 /shared \
            && (mountpoint -q /shared || gcsfuse --implicit-dirs '$GCSFUSE' /shared)"
    fi
}

train() {
    local flag words="" named=""
    for flag in "$@"; do
        case $flag in --logdir=*) named=1 ;; esac
        words+=" $(printf %q "$flag")"
    done
    if [ -z "$named" ]; then
        echo "tpu_vm.sh: --logdir=FOLDER must be named, on storage that all workers share" >&2
        return 2
    fi
    # The pod itself says how many workers there are, which one this is, and where number 0 is found.
    on_all "cd jaxrl && nohup ../env/bin/python -m jaxrl.train --distributed.coordinator=auto --supervise$words \
        > ../jaxrl.out 2>&1 < /dev/null & echo \$! > jaxrl.pid"
}

running() { # on worker 0
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 --command "kill -0 \$(cat jaxrl.pid)" \
        2>/dev/null
}

logs() {
    gcloud compute tpus tpu-vm ssh "$NAME" "${where[@]}" --worker=0 --command 'tail -n 50 -F jaxrl.out'
}

stop() {
    on_all "kill -TERM \$(cat jaxrl.pid)"
}

watch() {
    while true; do
        case $(state) in
        ACTIVE)
            running || install && train "$@"
            while running; do sleep 60; done
            [ "$(state)" != ACTIVE ] || return 0 # it has ended by itself
            ;;
        GONE) create && install && train "$@" ;;
        *) delete ;; # preempted: the request stays, and is of no use
        esac
    done
}

command=${1:?create, install, train, logs, stop, watch or delete}
shift
case $command in
create | install | train | logs | stop | watch | delete) "$command" "$@" ;;
*)
    echo "tpu_vm.sh: $command: create, install, train, logs, stop, watch or delete" >&2
    exit 2
    ;;
esac
