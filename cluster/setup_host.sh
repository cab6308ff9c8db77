#!/usr/bin/env bash
# Prepares a machine of the cluster: virtual environment, variables, shared folder. May be repeated.
#   bash setup_host.sh SHARED_FOLDER [--head]
set -euo pipefail
storage=${1:?usage: setup_host.sh SHARED_FOLDER [--head]}
role=${2:-}
code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/imf-venv
fail() { echo "$(hostname): $*" >&2; exit 1; }

mkdir -p "$storage" 2>/dev/null || true
probe=$storage/.writable-$(hostname)-$$
{ : > "$probe"; } 2>/dev/null || fail "the shared folder $storage cannot be written to: mount it here, or name another"
rm -f "$probe"

if [ "$role" = --head ]; then  # all else was done by the call for every machine
  cat >> "$HOME/.imf_env" <<ENV
export RAY_ADDRESS=auto MLFLOW_TRACKING_URI=http://127.0.0.1:${IMF_MLFLOW_PORT:-5000}
ENV
  exit 0
fi

[ -s "$HOME/.ray/auth_token" ] || fail "no ~/.ray/auth_token: run \`ray get-auth-token --generate\` where you run \`ray up\`"
chmod 600 "$HOME/.ray/auth_token"

if [ ! -x "$venv/bin/python" ]; then
  for candidate in ${IMF_PYTHON:-python3.11 python3.12 python3}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      "$candidate" -m venv "$venv"; break
    fi
  done
  [ -x "$venv/bin/python" ] || fail "no Python 3.11 or newer with venv: install it, the same patch version on every machine"
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check -c "$code/constraints.txt" -e "$code" ||
  fail "the packages of $code/constraints.txt could not be installed; see above"

# Written anew each time, so that a changed folder is a changed variable. PATH: the launcher runs the first `python` there is.
cat > "$HOME/.imf_env" <<ENV
export IMF_STORAGE='$storage' RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 MLFLOW_DISABLE_TELEMETRY=true
export PATH="$venv/bin:\$PATH"
ENV
grep -qs '\.imf_env' "$HOME/.bashrc" || echo '[ -f ~/.imf_env ] && . ~/.imf_env' >> "$HOME/.bashrc"
echo "$(hostname): $("$venv/bin/python" --version) in $venv"
