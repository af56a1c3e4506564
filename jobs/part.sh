#!/usr/bin/env bash
# Scores one part of a divided input: what a job of a cluster runs.
#
#   part.sh INDEX LISTS RESULTS [OPTIONS OF tumorscan score]
#
# Scores what LISTS/INDEX.list names (split.sh makes it) into RESULTS/INDEX; called again it continues. The exit status
# is that of tumorscan, but that 4 (finished, some slices could not be scored) is a success with a line that says so:
# a scheduler takes every other status for a job to run again or to give up.
set -euo pipefail

if (($# < 3)); then
  echo "usage: part.sh INDEX LISTS RESULTS [OPTIONS]" >&2
  exit 2
fi
index=$1 lists=$2 results=$3
shift 3

# A container's first process gets the signals, and this is it: they are handed on.
told=
trap 'told=yes; kill -TERM "$scoring" 2>/dev/null || true' TERM
tumorscan score --files-from "$lists/$index.list" --out "$results/$index" "$@" &
scoring=$!

status=0
wait "$scoring" || status=$?
while [[ $told ]]; do # the signal ended the wait, not the run
  told=
  ended=0
  wait "$scoring" || ended=$?
  ((ended == 127)) || status=$ended
done

if ((status == 4)); then
  echo "part $index is finished; the slices that could not be scored are in $results/$index/errors.csv" >&2
  status=0
fi
exit "$status"
