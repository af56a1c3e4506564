#!/usr/bin/env bash
# Scores one shard of an input: what a job of a cluster runs.
#
#   shard.sh INDEX COUNT RESULTS INPUT... [OPTIONS OF tumorscan score]
#
# INDEX counts from 0, as Kubernetes does (JOB_COMPLETION_INDEX); tumorscan counts shards from 1, so this one scores
# shard INDEX+1 of COUNT into RESULTS/INDEX+1. Called again it continues. The exit status is that of tumorscan, but that
# 4 (finished, some slices could not be scored) is a success with a line that says so: a scheduler takes every other
# status for a job to run again or to give up.
set -euo pipefail

if (($# < 4)) || [[ ! $1 =~ ^[0-9]+$ ]]; then
  echo "usage: shard.sh INDEX COUNT RESULTS INPUT... [OPTIONS]" >&2
  exit 2
fi
number=$((10#$1 + 1)) count=$2 results=$3
shift 3

# A container's first process gets the signals, and this is it: they are handed on.
told='' scoring=''
trap 'told=yes; [[ -z $scoring ]] || kill -TERM "$scoring" 2>/dev/null || true' TERM
tumorscan score "$@" --shard "$number/$count" --out "$results/$number" &
scoring=$!
[[ -z $told ]] || kill -TERM "$scoring" 2>/dev/null || true # it came before there was whom to tell

status=0
wait "$scoring" || status=$?
while [[ $told ]]; do # the signal ended the wait, not the run
  told=
  ended=0
  wait "$scoring" || ended=$?
  ((ended == 127)) || status=$ended
done

if ((status == 4)); then
  echo "shard $number/$count is finished; what could not be scored is in $results/$number/errors.csv" >&2
  status=0
fi
exit "$status"
