#!/usr/bin/env bash
# Start or stop a one-node Slurm for the tests, as root, with all files in DIR; needs no systemd:
#     bash tests/slurm_cluster.sh up DIR && export SLURM_CONF=DIR/slurm.conf
#     bash tests/slurm_cluster.sh down DIR
# It has more CPUs than the machine, to run tests in parallel, a fake GPU, for the commands in the
# README, and three partitions: jobs in `high` preempt those in `gpu` and, after a grace time, those
# in `grace`.
set -euo pipefail
DIR=$(realpath -m "$2")
export SLURM_CONF=$DIR/slurm.conf

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

up() {
    mkdir -p "$DIR"/{state,spool}
    dd if=/dev/urandom of="$DIR/munge.key" bs=1024 count=1 status=none
    chmod 600 "$DIR/munge.key"
    # --force: a parent folder may be world-writable.
    munged --force --origin=127.0.0.1 --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" \
        --pid-file="$DIR/munged.pid" --log-file="$DIR/munged.log" --seed-file="$DIR/munge.seed"
    echo "Name=gpu File=/dev/zero" > "$DIR/gres.conf"
    cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=root
# A requeued job waits until its old credential expires (default: two minutes).
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MinJobAge=3600
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node CPUs=8 Gres=gpu:1 NodeHostname=localhost NodeAddr=127.0.0.1
PartitionName=gpu Nodes=node Default=YES PriorityTier=1
PartitionName=grace Nodes=node PriorityTier=1 GraceTime=30
PartitionName=high Nodes=node PriorityTier=2
CONF
    slurmctld
    slurmd -N node
    for _ in {1..100}; do
        [ "$(sinfo -h -p gpu -o %T 2> /dev/null)" != idle ] || return 0
        sleep 0.1
    done
    echo "Slurm did not start; see $DIR/*.log" >&2
    exit 1
}

down() {
    if scancel --user=root; then
        while [ -n "$(squeue -h)" ]; do sleep 0.2; done
        scontrol shutdown
    fi
    # munged last: slurmd obeys only what it can authenticate. On a busy machine it may miss that.
    for _ in {1..300}; do
        [ -e "$DIR/slurmctld.pid" ] || [ -e "$DIR/slurmd.pid" ] || break
        sleep 0.1
    done
    for file in "$DIR"/slurm*.pid; do
        [ ! -e "$file" ] || kill -9 "$(cat "$file")" || true
    done
    munged --stop --socket="$DIR/munge.socket"
}

"$1"
