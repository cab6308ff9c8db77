#!/usr/bin/env bash
# Starts the MLflow server of the cluster on this machine unless it runs; returns when it answers. It listens on loopback:
# only the driver of a search logs, and that runs here. Database in ~/mlflow, artifacts in the shared folder.
#   bash mlflow_head.sh [stop]
set -euo pipefail
port=${IMF_MLFLOW_PORT:-5000}
home=$HOME/mlflow
url=http://127.0.0.1:$port
answers() { python - "$url/health" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=2).read()
PY
}

if [ "${1:-}" = stop ]; then
  [ -f "$home/pid" ] && kill -- "-$(cat "$home/pid")" 2>/dev/null && echo "MLflow stopped" || echo "MLflow was not running"
  rm -f "$home/pid"
  exit 0
fi
answers && { echo "MLflow answers at $url"; exit 0; }
mkdir -p "$home" "${IMF_STORAGE:?run setup_host.sh first}/mlartifacts"
# Its own session: it outlives the terminal, and its process group can be ended as a whole.
MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid nohup mlflow server \
  --host 127.0.0.1 --port "$port" --workers "${IMF_MLFLOW_WORKERS:-2}" --backend-store-uri "sqlite:///$home/mlflow.db" \
  --artifacts-destination "$IMF_STORAGE/mlartifacts" > "$home/log" 2>&1 < /dev/null &
echo $! > "$home/pid"
for _ in $(seq 120); do
  answers && { echo "MLflow answers at $url"; exit 0; }
  kill -0 "$(cat "$home/pid")" 2>/dev/null || break
  sleep 1
done
echo "MLflow does not answer at $url; the end of $home/log:" >&2
tail -n 20 "$home/log" >&2
exit 1
