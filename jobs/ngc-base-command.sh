#!/usr/bin/env bash
# Submits one NGC Base Command job a shard, one GPU each. Written after published examples; it has not been tried.
#
#   ACE=... INSTANCE=dgxa100.80g.1.norm IMAGE=ORG/tumorscan:TAG DATASET=ID WORKSPACE=NAME jobs/ngc-base-command.sh 4
#
# Mounts: the dataset at /data, which Base Command mounts read-only; the workspace at /workspace, for plans and results,
# as the folder of a job (--result) is not seen by the next one.
#
# A job that ends with 75 (out of time) or 143 (told to stop) is not finished: call this again. Shards that are finished
# say so and end at once. At last a job of the command line
#
#   bash -c 'tumorscan merge /workspace/results/shards/* --out /workspace/results/merged'
set -euo pipefail

if (($# != 1)) || [[ ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: ngc-base-command.sh SHARDS" >&2
  exit 2
fi
: "${ACE:?}" "${INSTANCE:?}" "${IMAGE:?}" "${DATASET:?}" "${WORKSPACE:?}"

for ((index = 0; index < $1; index++)); do
  ngc base-command job run --name "tumorscan-$((index + 1))" --ace "$ACE" --instance "$INSTANCE" --image "$IMAGE" \
    --datasetid "$DATASET:/data" --workspace "$WORKSPACE:/workspace:RW" --result /results \
    --preempt RUNONCE --total-runtime 14400s --env-var TUMORSCAN_PLAN_CACHE:/workspace/plans/tumorscan \
    --commandline "/opt/tumorscan/jobs/shard.sh $index $1 /workspace/results/shards /data --backend tensorrt --max-runtime 225m --quiet"
done
