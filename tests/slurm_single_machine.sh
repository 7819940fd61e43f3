#!/usr/bin/env bash
# A real SLURM on this one machine, for the tests: loopback, no systemd, no cgroups, fake GPUs.
# usage (as root): slurm_single_machine.sh install | up DIR [NODES] | down DIR
# then: export SLURM_CONF=DIR/slurm.conf
#
# The CPUs are more than the machine has (config_overrides): test jobs mostly sleep. SlurmdTimeout
# is short, so that a frozen node daemon is noticed within seconds.
set -euo pipefail

ACTION=${1:?install, up or down}
PACKAGES=(slurmctld slurmd slurm-client munge)
CPUS=4

install_slurm() {
  local tool missing=0
  for tool in slurmctld slurmd munged sbatch; do command -v "$tool" >/dev/null || missing=1; done
  [ "$missing" = 1 ] || return 0
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends "${PACKAGES[@]}" >/dev/null
}

stop_daemons() {
  local file pid
  for file in "$D"/slurmd.*.pid "$D"/slurmctld.pid "$D"/munge/pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill -CONT "$pid" 2>/dev/null || true
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep .1; done
    kill -9 "$pid" 2>/dev/null || true
    rm -f "$file"
  done
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Another SLURM of this kind, of other tests or left behind by tests that were killed, has its own
# ports: take the first ones that are free.
free_ports() {
  local shift i
  for shift in $(seq 0 20 400); do
    listens $((16817 + shift)) && continue
    for i in $(seq "$N"); do listens $((17000 + shift + i)) && continue 2; done
    echo "$shift"
    return
  done
  echo "no free ports for SLURM" >&2
  return 1
}

configure() {
  local host memory shift
  shift=$(free_ports)
  host=$(hostname -s)
  memory=$(awk '/MemTotal/{print int($2/1200)}' /proc/meminfo)
  cat >"$SLURM_CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$((16817 + shift))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$D/jobcomp.log
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=10000,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
MaxArraySize=10001
GresTypes=gpu
SlurmctldPidFile=$D/slurmctld.pid
SlurmctldLogFile=$D/slurmctld.log
StateSaveLocation=$D/state
SlurmdPidFile=$D/slurmd.%n.pid
SlurmdLogFile=$D/slurmd.%n.log
SlurmdSpoolDir=$D/spool.%n
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
  local i
  for i in $(seq "$N"); do
    echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((17000 + shift + i))" \
      "CPUs=$CPUS RealMemory=$memory Gres=gpu:2" >>"$SLURM_CONF"
  done
  for i in 0 1; do [ -e "$D/gpu$i" ] || mknod "$D/gpu$i" c 1 3; done
  echo "NodeName=n[1-$N] Name=gpu File=$D/gpu[0-1]" >"$D/gres.conf"
}

start_daemons() {
  install -d -m 711 -o munge -g munge "$D/munge"
  head -c 1024 /dev/urandom >"$D/munge/key"
  chown munge: "$D/munge/key"
  chmod 400 "$D/munge/key"
  setpriv --reuid=munge --regid=munge --clear-groups munged --key-file="$D/munge/key" \
    --socket="$D/munge/socket" --pid-file="$D/munge/pid" --log-file="$D/munge/log" \
    --seed-file="$D/munge/seed"
  slurmctld -c
  local i
  for i in $(seq "$N"); do slurmd -N "n$i"; done
  for _ in $(seq 200); do
    [ "$(sinfo -h -p low -t idle -o %D 2>/dev/null)" = "$N" ] && return
    sleep .1
  done
  echo "the nodes did not become idle:" >&2
  sinfo >&2 || true
  tail -n 20 "$D"/slurmctld.log "$D"/slurmd.*.log >&2
  return 1
}

case $ACTION in
  install) install_slurm; exit ;;
esac
D=${2:?directory}
N=${3:-2}
export SLURM_CONF=$D/slurm.conf
case $ACTION in
  up)
    install_slurm
    install -d -m 755 "$D" "$D/state"
    stop_daemons
    configure
    start_daemons
    ;;
  down)
    timeout 10 scancel -f -u root 2>/dev/null || true
    sleep 1
    stop_daemons
    ;;
  *) echo "unknown action $ACTION" >&2; exit 2 ;;
esac
