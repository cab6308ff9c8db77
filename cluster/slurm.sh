#!/usr/bin/env bash
# A search on nodes of a Slurm cluster, with a Ray cluster for the length of the job.
#
#   python cluster/check.py cluster/slurm.sh
#   sbatch cluster/slurm.sh --study first --data /shared/graphs/mygraph --gpus-per-worker 1 --trials 100
#
# The same command again, or the requeued job, goes on with the study. Home and IMF_STORAGE have to be shared by the nodes.
# MLflow: ssh -L 5000:127.0.0.1:5000 -J LOGIN_NODE FIRST_NODE, while the job runs.
#SBATCH --job-name=imf-search
#SBATCH --partition=CHANGE-ME-partition
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:INT@120
set -euo pipefail

export IMF_STORAGE=${IMF_STORAGE:-CHANGE-ME-shared-folder-for-studies}
# Made once: python3.11 -m venv ~/imf-venv && ~/imf-venv/bin/pip install -c constraints.txt -e .
venv=${IMF_VENV:-$HOME/imf-venv}
code=${SLURM_SUBMIT_DIR:-$PWD}              # submitted from the root of the repository
export PATH=$venv/bin:$PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
umask 077
ray get-auth-token --generate > /dev/null   # ~/.ray/auth_token: other users of the nodes cannot talk to this Ray

head=$(hostname)                            # the batch script runs on the first node, and so do the driver and MLflow
address=$(getent ahostsv4 "$head" | awk '$1 !~ /^127\./ {print $1; exit}')
[ -n "$address" ] || { echo "$head has no address but loopback ones in its host table" >&2; exit 1; }
port=$((20000 + SLURM_JOB_ID % 20000))      # two jobs on a node do not meet
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
gpus=${SLURM_GPUS_ON_NODE:-0}

unset OMP_NUM_THREADS
srun --overlap --nodes=1 --ntasks=1 -w "$head" ray start --head --block --node-ip-address="$address" --port="$port" \
  --num-cpus="$cpus" --num-gpus="$gpus" --resources='{"trial": 1000}' --dashboard-host=127.0.0.1 &
until ray status --address "$address:$port" > /dev/null 2>&1; do sleep 2; kill -0 $! || exit 1; done
others=$((SLURM_JOB_NUM_NODES - 1))
[ "$others" = 0 ] || srun --overlap --nodes="$others" --ntasks="$others" --exclude="$head" \
  ray start --block --address="$address:$port" --num-cpus="$cpus" --num-gpus="$gpus" &

IMF_MLFLOW_PORT=${IMF_MLFLOW_PORT:-5000} bash "$code/cluster/mlflow_head.sh"
trap 'bash "$code/cluster/mlflow_head.sh" stop' EXIT
export MLFLOW_TRACKING_URI=http://127.0.0.1:${IMF_MLFLOW_PORT:-5000}

# Interrupted two minutes before the time is over, the search ends by itself and says how to go on.
python "$code/tune/search.py" --address "$address:$port" --expect-nodes "$SLURM_JOB_NUM_NODES" "$@" &
search=$!
trap 'kill -INT $search 2>/dev/null' INT
status=0
wait "$search" || status=$?
if kill -0 "$search" 2>/dev/null; then  # the signal has ended the wait, not the search
  status=0
  wait "$search" || status=$?
fi
exit "$status"
