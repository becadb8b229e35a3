#!/usr/bin/env bash
# tools/slurm/local_cluster.sh start|stop|status [DIR]
#
# A real Slurm of one node on this machine, to try the launch scripts and to test them. It needs neither systemd nor root
# (as another user it runs that user's jobs), and leaves nothing outside DIR (./work_dirs/slurm) but the daemons.
#   eval "$(tools/slurm/local_cluster.sh start)"    start, and point srun, sbatch and squeue at it
#   tools/slurm/local_cluster.sh stop               cancel all jobs and stop the daemons
# CPUS: how many the node claims to have, whatever it has; by default the machine's.
set -euo pipefail

ACTION=${1:-}
DIR=$(realpath -m "${2:-work_dirs/slurm}")
DAEMONS=(slurmctld slurmd munged)
export SLURM_CONF=$DIR/slurm.conf
export PATH=$PATH:/usr/sbin:/sbin # where Debian has the daemons

say() { echo "local_cluster.sh: $*" >&2; }

pid_of() { # of a daemon that was started here and still runs; a pid file may be older than the process that has its number
    local pid
    pid=$(cat "$DIR/$1.pid" 2>/dev/null) || return
    tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qF "$DIR/" && echo "$pid"
}

free_ports() { # two neighbours that nobody listens on
    local port
    while port=$((20000 + RANDOM % 10000)); do
        if ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && ! (: <"/dev/tcp/127.0.0.1/$((port + 1))") 2>/dev/null; then
            echo "$port $((port + 1))"
            return
        fi
    done
}

configure() {
    local node user controller_port node_port
    node=$(uname -n)
    node=${node%%.*}
    user=$(id -un)
    read -r controller_port node_port < <(free_ports)
    # cred_expire: a requeued job waits as long, by default two minutes. config_overrides: CPUS need not be there.
    cat >"$SLURM_CONF" <<END
ClusterName=local
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$controller_port
SlurmdPort=$node_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$DIR/munge.socket,cred_expire=5
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/spool
SlurmctldPidFile=$DIR/slurmctld.pid
SlurmdPidFile=$DIR/slurmd.pid
SlurmctldLogFile=$DIR/slurmctld.log
SlurmdLogFile=$DIR/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
NodeName=$node NodeAddr=127.0.0.1 CPUs=${CPUS:-$(nproc)}
PartitionName=local Nodes=ALL Default=YES State=UP
END
}

start() {
    local daemon missing=()
    for daemon in "${DAEMONS[@]}" srun; do
        command -v "$daemon" >/dev/null || missing+=("$daemon")
    done
    if [ ${#missing[@]} != 0 ]; then
        say "expected ${missing[*]}, found none; on Debian: apt-get install -y --no-install-recommends slurm-wlm munge"
        exit 1
    fi
    if [ ${#DIR} -gt 90 ]; then
        say "DIR: expected at most 90 characters, since a socket's path is short, found $DIR"
        exit 1
    fi
    for daemon in "${DAEMONS[@]}"; do
        if pid_of "$daemon" >/dev/null; then
            say "$daemon runs in $DIR already; stop it first"
            exit 1
        fi
    done
    mkdir -p "$DIR/state" "$DIR/spool"
    configure
    (umask 077 && head -c 1024 /dev/urandom >"$DIR/munge.key")
    trap 'say "it did not start; the logs in $DIR end:"; tail -n 5 "$DIR"/*.log >&2; stop' ERR
    # --force: DIR may lie in a folder that others write to, such as /tmp
    munged --force --key-file="$DIR/munge.key" --socket="$DIR/munge.socket" --pid-file="$DIR/munged.pid" \
        --log-file="$DIR/munged.log" --seed-file="$DIR/munged.seed" 2>>"$DIR/munged.log"
    slurmctld -c -f "$SLURM_CONF" >&2
    slurmd -c -f "$SLURM_CONF" >&2
    wait_for idle
    trap - ERR
    say "partition 'local' is up, its state and logs are in $DIR"
    echo "export SLURM_CONF=$SLURM_CONF"
}

wait_for() {
    local end=$((SECONDS + 30))
    while [ $SECONDS -lt $end ]; do
        [ "$(timeout 5 sinfo -h -o %T 2>/dev/null)" = "$1" ] && return
        sleep 0.5
    done
    return 1
}

stop() {
    local daemon pid _
    if pid_of slurmctld >/dev/null && pid_of munged >/dev/null; then
        timeout 5 squeue -h -o %A | sort -u | xargs -r timeout 5 scancel || true
        for _ in {1..40}; do # what ignores SIGTERM is killed after KillWait
            [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
            sleep 0.5
        done
    fi
    for daemon in "${DAEMONS[@]}"; do
        pid=$(pid_of "$daemon") || continue
        kill "$pid"
        for _ in {1..20}; do # it removes its pid file first
            kill -0 "$pid" 2>/dev/null || continue 2
            sleep 0.5
        done
        kill -9 "$pid"
    done
}

status() {
    local daemon down=0
    for daemon in "${DAEMONS[@]}"; do
        echo "$daemon: $(pid_of "$daemon" || echo down)"
        pid_of "$daemon" >/dev/null || down=1
    done
    [ $down = 0 ] || return 1
    timeout 5 sinfo
    timeout 5 squeue
}

case $ACTION in
start | stop | status) "$ACTION" ;;
*)
    say 'expected start, stop or status, and then a folder'
    exit 2
    ;;
esac
