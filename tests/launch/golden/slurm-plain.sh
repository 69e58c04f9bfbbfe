#!/bin/bash
#SBATCH --job-name=ft-0123456789ab-s1-0018c2-2
#SBATCH --comment='row, a b, seed 1'
#SBATCH --chdir=/home/us/ftjax
#SBATCH --output=/bucket/runs/0123456789ab/seed1/attempt-2.log
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --requeue
export JAX_COORDINATOR_ADDRESS=$(hostname):$((10000 + SLURM_JOB_ID % 20000))
export JAX_COMPILATION_CACHE_DIR=/bucket/runs/compiled-$SLURM_JOB_PARTITION
trap : TERM
srun --kill-on-bad-exit=1 bash -c 'at=$1; shift
rank=${SLURM_PROCID:-${JOB_COMPLETION_INDEX:-${RANK:-0}}}
number=${at##*-}
if [ -e "${at%-*}-$((number + 1)).json" ]; then exit 0; fi
exec >>"$at.$rank.log" 2>&1
rm -f "$at.$rank.code"
if [ "$rank" = 0 ]; then echo "$(date -u +%FT%TZ) $(hostname) ${SLURM_JOB_ID:-}" >>"$at.starts"; fi
echo "start of $(date -u +%FT%TZ) on $(hostname)"
trap '"'"'kill -TERM $child 2>/dev/null'"'"' TERM
"$@" & child=$!
while wait $child; code=$?; [ $code -gt 128 ] && kill -0 $child 2>/dev/null; do :; done
echo $code >"$at.$rank.code"
exit $code
' process /bucket/runs/0123456789ab/seed1/attempt-2 \
    /home/us/venv/bin/python -m ftjax train --config=configs/default.py:task=vowels '--config.method.targets=('"'"'attn/q'"'"',)' --workdir=/bucket/runs/0123456789ab/seed1
code=$?
ended() { cat /bucket/runs/0123456789ab/seed1/attempt-2.*.code | sort -u | grep -vx 0; }
running() { scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; }
if [ ! -e /bucket/runs/0123456789ab/seed1/result.json ] && [ "$(ended)" = 143 ] && [ "$(wc -l </bucket/runs/0123456789ab/seed1/attempt-2.starts)" -le 7 ] && running; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
