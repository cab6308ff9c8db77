#!/usr/bin/env bash
# Several hosts on one machine, for the time of a command.
#   LAB_DIR=FOLDER LAB_VENV=VENV bash lab.sh NUM_WORKERS COMMAND...      # as root
#   bash lab.sh host NAME ADDRESS                                       # within COMMAND: start a host (again)
#
# A namespace of network, processes, mounts, IPC and names ("the lab") holds a bridge and hosts, head (10.88.0.10) and worker1
# (10.88.0.11) ..., each a namespace of its own with an address, an sshd, a home, /tmp, /dev/shm and a copy-on-write view of
# VENV. All of them see LAB_DIR/shared as /mnt/shared. There is no way out of the lab, and the kernel ends all of it with its
# first process. LAB_DIR must not be below /tmp.
# Process namespaces are a must: `ray stop` ends every Ray process that it sees.
set -euo pipefail
here=${BASH_SOURCE[0]}
: "${LAB_DIR:?folder for files}" "${LAB_VENV:?virtual environment with ray}"

start_host() {   # name address
  local name=$1 address=$2 H=$LAB_DIR/$1
  rm -rf "$H/tmp" "$H/work"; mkdir -p "$H"/{home/ray,tmp,up,work} "$LAB_DIR/shared"
  chmod 1777 "$H/tmp"; chmod 700 "$H/home/ray"
  ln -sfn "$LAB_VENV" "$H/home/ray/imf-venv"
  sed 's#^root:\(.*\):/root:#root:\1:/home/ray:#' /etc/passwd > "$H/passwd"
  [ -f "$H/home/ray/.bashrc" ] || cp "$LAB_DIR/bashrc" "$H/home/ray/.bashrc"
  echo '. ~/.bashrc' > "$H/home/ray/.profile"
  printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > "$H/hosts"
  cat > "$H/sshd_config" <<CFG
ListenAddress $address
HostKey $LAB_DIR/hostkey
AuthorizedKeysFile $LAB_DIR/id.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxStartups 100
MaxSessions 100
UseDNS no
PrintMotd no
PrintLastLog no
Subsystem sftp internal-sftp
CFG
  cat > "$H/init.sh" <<INIT
set -e
hostname $name
ip link set lo up
mount --bind $H/passwd /etc/passwd
mount --bind $H/home /home
mount --bind $H/tmp /tmp
mount --bind $H/hosts /etc/hosts
mount -t tmpfs -o size=50% tmpfs /dev/shm
mount -t overlay overlay -o lowerdir=$LAB_VENV,upperdir=$H/up,workdir=$H/work $LAB_VENV
mount -t tmpfs -o size=1m none /mnt; mkdir /mnt/shared; mount --bind $LAB_DIR/shared /mnt/shared
mkdir -p /run/sshd
until ip -4 -o addr show | grep -qF ' $address/'; do sleep 0.02; done
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /usr/sbin/sshd -D -e -f $H/sshd_config
INIT
  setsid unshare --net --pid --fork --kill-child=SIGKILL --mount --mount-proc --uts --ipc --propagation private \
    bash "$H/init.sh" > "$H/sshd.log" 2>&1 &
  local outer=$! pid= i
  for i in $(seq 100); do   # the child of unshare is the first process of the host: killing it ends the host
    pid=$(cat /proc/$outer/task/$outer/children 2>/dev/null || true)
    [ -n "$pid" ] && break; sleep 0.02
  done
  echo "${pid%% *}" > "$H/pid"
  ip link del "v$name" 2>/dev/null || true
  ip link add "v$name" type veth peer name eth0 netns "$(cat "$H/pid")"
  ip link set "v$name" master br0 up
  nsenter -t "$(cat "$H/pid")" -n ip addr add "$address/24" dev eth0
  nsenter -t "$(cat "$H/pid")" -n ip link set eth0 up
  for i in $(seq 200); do
    if (exec 3<>"/dev/tcp/$address/22") 2>/dev/null; then return 0; fi
    sleep 0.05
  done
  echo "host $name: no sshd" >&2; cat "$H/sshd.log" >&2; return 1
}

if [ "$1" = host ]; then start_host "$2" "$3"; exit; fi
if [ "${LAB_STAGE:-}" != inner ]; then
  mkdir -p "$LAB_DIR"
  LAB_STAGE=inner exec unshare --net --pid --fork --kill-child=SIGKILL --mount --mount-proc --ipc --uts --propagation private \
    bash "$here" "$@"
fi
unset LAB_STAGE
workers=$1; shift
mkdir -p "$LAB_DIR/client/tmp"
mount --bind "$LAB_DIR/client/tmp" /tmp   # the launcher's own files
hostname labclient
ip link set lo up
ip link add br0 type bridge
ip addr add 10.88.0.1/24 dev br0
ip link set br0 up
[ -f "$LAB_DIR/id" ] || ssh-keygen -q -t ed25519 -N '' -C lab -f "$LAB_DIR/id"
[ -f "$LAB_DIR/hostkey" ] || ssh-keygen -q -t ed25519 -N '' -f "$LAB_DIR/hostkey"
start_host head 10.88.0.10
for i in $(seq "$workers"); do start_host "worker$i" "10.88.0.$((10 + i))"; done
"$@"
