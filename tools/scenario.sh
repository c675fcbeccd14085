#!/usr/bin/env bash
# scenario.sh SCENARIO LAB: run a molecule scenario. Its lab is gone afterwards, whatever happened; what failed is said last,
# and all that was printed is kept in the lab's folder (logs/SCENARIO.log, after a failure also logs/SCENARIO.failed.log).
set -uo pipefail
scenario=$1
logs=${MESH_LAB_HOME:-/var/lib/mesh-lab}/logs
export MESH_LAB_NAME=$2 PYTHONUNBUFFERED=1
if [ -t 1 ]; then export PY_COLORS=1 ANSIBLE_FORCE_COLOR=1; fi
mkdir -p "$logs"
trap 'mesh lab down || code=1; exit "${code:-130}"' EXIT
trap 'exit 130' INT TERM
molecule test -s "$scenario" 2>&1 | tee -i "$logs/$scenario.log"
code=$?
[ "$code" = 0 ] && exit
trap 'exit $code' EXIT
cp "$logs/$scenario.log" "$logs/$scenario.failed.log"
mesh lab down
printf '\nscenario %s failed; all of it: %s\n' "$scenario" "$logs/$scenario.failed.log"
sed 's/\x1b\[[0-9;]*m//g; s/^ *│ \{0,1\}//' "$logs/$scenario.log" | grep -E '^(FAILED|E  ) |fatal: \[|failed: \[|^\[ERROR\]' -A 2 | cut -c1-300 | tail -n 20
