#!/bin/bash
# A Slurm of two virtual nodes on this machine, by Debian's packages, as root: start.sh FOLDER. stop.sh FOLDER ends it.
#     apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
set -eu
folder=$(realpath -m "$1")
port=$((30000 + RANDOM / 4 * 3))  # of its own, as the numbers of its jobs, of which JAX's ports are made
mkdir -p "$folder"/state "$folder"/spool.n1 "$folder"/spool.n2
head -c 64 /dev/urandom >"$folder/munge.key"
chmod 600 "$folder/munge.key"
chmod 755 "$folder"
munged --force --socket="$folder/munge.socket" --key-file="$folder/munge.key" --pid-file="$folder/munged.pid" \
    --seed-file="$folder/munge.seed" --log-file="$folder/munged.log" 2>"$folder/munged.err"
cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
FirstJobId=$port
SlurmctldPidFile=$folder/slurmctld.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmdLogFile=$folder/slurmd.%n.log
SlurmdSpoolDir=$folder/spool.%n
SlurmdParameters=config_overrides
StateSaveLocation=$folder/state
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
JobRequeue=1
KillWait=60
MinJobAge=60
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + 2))] CPUs=2
PartitionName=low Nodes=n[1-2] Default=YES PriorityTier=1 GraceTime=120
PartitionName=high Nodes=n[1-2] PriorityTier=2
CONF
export SLURM_CONF="$folder/slurm.conf"
slurmctld
slurmd -N n1
slurmd -N n2
for _ in $(seq 60); do
    if [ "$(sinfo --noheader --states=idle --format=%D --partition=low 2>/dev/null)" = 2 ]; then exit 0; fi
    sleep 0.5
done
sinfo >&2
exit 1
