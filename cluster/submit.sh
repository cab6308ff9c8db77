#!/usr/bin/env bash
# Brings the code to the head and submits a search: what is run is what lies here, and every argument arrives as it was given.
#   bash cluster/submit.sh cluster.yaml -- --data /shared/imf/graphs/'my graph' --trials 50
# `ray submit` alone brings the script and not the packages, and the remote shell reads its arguments a second time.
set -euo pipefail
file=${1:?usage: submit.sh CLUSTER_FILE [options of ray submit] -- [options of tune/search.py]}
shift
own=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do own+=("$1"); shift; done
[ $# -gt 0 ] && shift
quoted=()
for argument in "$@"; do quoted+=("$(printf %q "$argument")"); done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ray rsync-up "$file"
exec ray submit "${own[@]}" "$file" tune/search.py -- "${quoted[@]}"
