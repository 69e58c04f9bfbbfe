#!/bin/bash
# Ends what start.sh FOLDER started.
for pid in "$1"/slurmd.*.pid "$1"/slurmctld.pid "$1"/munged.pid; do
    if [ -e "$pid" ]; then kill "$(cat "$pid")"; fi
done
