#!/usr/bin/env bash
# Submits one NGC Base Command job a part, one GPU each. Written after published examples; it has not been tried.
#
#   ACE=... INSTANCE=dgxa100.80g.1.norm IMAGE=ORG/tumorscan:TAG DATASET=ID WORKSPACE=NAME jobs/ngc-base-command.sh 4
#
# Mounts: the dataset at /data, which Base Command mounts read-only; the workspace at /workspace, for lists, plans and
# results, as the folder of a job (--result) is not seen by the next one. The lists are made once, by a job of the
# command line
#
#   /opt/tumorscan/jobs/split.sh /data 4 /workspace/lists
#
# A job that ends with 75 (out of time) or 143 (told to stop) is not finished: call this again. Parts that are finished
# say so and end at once.
set -euo pipefail

if (($# != 1)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: ngc-base-command.sh PARTS" >&2
  exit 2
fi
: "${ACE:?}" "${INSTANCE:?}" "${IMAGE:?}" "${DATASET:?}" "${WORKSPACE:?}"

for ((index = 0; index < $1; index++)); do
  ngc base-command job run --name "tumorscan-$index" --ace "$ACE" --instance "$INSTANCE" --image "$IMAGE" \
    --datasetid "$DATASET:/data" --workspace "$WORKSPACE:/workspace:RW" --result /results \
    --preempt RUNONCE --total-runtime 14400s --env-var TUMORSCAN_PLAN_CACHE:/workspace/plans/tumorscan \
    --commandline "/opt/tumorscan/jobs/part.sh $index /workspace/lists /workspace/results --backend tensorrt --max-runtime 225m --quiet"
done
