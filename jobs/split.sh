#!/usr/bin/env bash
# Divides an input among the jobs of a cluster.
#
#   split.sh DATA PARTS LISTS
#
# Deals the folders directly below DATA (a patient or series each) in turn into LISTS/0.list, 1.list, ... for part.sh.
# A folder stays whole: its slices may share one window of grey values. Called again with as many parts it leaves the
# lists as they are, since a run that has begun is continued with the same list.
set -euo pipefail

if (($# != 3)) || [[ ! $2 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: split.sh DATA PARTS LISTS" >&2
  exit 2
fi
data=$1 parts=$2 lists=$3

if [[ -d $lists ]]; then
  have=("$lists"/*.list)
  if ((${#have[@]} == parts)); then
    echo "$lists has $parts lists already"
    exit 0
  fi
  echo "split.sh: $lists is there and has no $parts lists: name another folder" >&2
  exit 2
fi
[[ -d $data ]] || { echo "split.sh: $data is no folder" >&2; exit 2; }

loose=$(find -L "$data" -mindepth 1 -maxdepth 1 -type f -regextype posix-extended -iregex '.*\.(tiff?|png|jpe?g|webp|dcm|nii|nii\.gz)' | wc -l)
if ((loose)); then
  echo "split.sh: $loose files lie directly in $data and would be left out: put them into a folder" >&2
  exit 2
fi
mapfile -d '' -t folders < <(find -L "$data" -mindepth 1 -maxdepth 1 -type d ! -name '.*' -print0 | LC_ALL=C sort -z)
if ((${#folders[@]} < parts)); then
  echo "split.sh: $data has ${#folders[@]} folders: take no more parts than that" >&2
  exit 2
fi

# Whole or not at all: a job must not find half a list.
mkdir -p "$(dirname "$lists")"
making=$(mktemp -d "$lists.XXXXXX")
chmod 755 "$making"
for ((folder = 0; folder < ${#folders[@]}; folder++)); do
  printf '%s\0' "${folders[folder]}" >>"$making/$((folder % parts)).list"
done
mv -T "$making" "$lists"
echo "${#folders[@]} folders in $parts lists in $lists"
