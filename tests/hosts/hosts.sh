#!/usr/bin/env bash
# A laptop and several hosts on one Linux machine, for trying `ray up` with provider local. Needs root, openssh-server, iproute2, rsync.
#   hosts.sh up    DIR PREFIX SUBNET NUMBER   PREFIXl (the laptop, SUBNET.254), PREFIXh (SUBNET.1), PREFIXw1 (SUBNET.2), ... with sshd
#   hosts.sh start DIR PREFIX SUBNET NAME     starts a host again that was killed, with an empty /tmp/ray and the same home
#   hosts.sh pid   NAME                       the host's first process, seen from this machine
#   hosts.sh down  DIR PREFIX                 kills all that runs on the hosts, and removes them
# A host is a network, PID, mount and hostname namespace: `ray stop` there ends no other Ray, and ports are its own. Killing its first
# process ends it as a power cut does. DIR keeps keys, homes and logs.
set -eu

here=$(readlink -f "$0")

address() {  # SUBNET PREFIX NAME
  case $3 in "$2l") echo "$1.254" ;; "$2h") echo "$1.1" ;; *) echo "$1.$((${3#"$2"w} + 1))" ;; esac
}

pid() {  # the process that is the first of its PID namespace
  local found
  for found in $(ip netns pids "$1" 2>/dev/null); do
    # NSpid has one column a namespace: this machine's number, then the host's.
    if [ "$(awk '/^NSpid/ {print NF ":" $NF}' "/proc/$found/status" 2>/dev/null)" = 3:1 ]; then echo "$found"; return; fi
  done
}

start() {  # DIR PREFIX SUBNET NAME
  mkdir -p "$1/$4/home"
  sed "s#^root:.*#root:x:0:0:root:$1/$4/home:/bin/bash#" /etc/passwd > "$1/$4/passwd"
  ip netns exec "$4" unshare --pid --fork --mount --uts --mount-proc --kill-child \
    bash "$here" inside "$1" "$4" "$(address "$3" "$2" "$4")" > "$1/$4/sshd.log" 2>&1 < /dev/null &
  local waited
  for waited in $(seq 100); do
    if grep -qs 'Server listening' "$1/$4/sshd.log"; then return; fi
    sleep 0.1
  done
  echo "no sshd on $4: $(tail -n 1 "$1/$4/sshd.log")" >&2
  exit 1
}

inside() {  # DIR NAME ADDRESS: the host's first process; it becomes sshd
  mount --make-rprivate /
  mkdir -p /tmp/ray
  mount -t tmpfs none /tmp/ray
  mount -t tmpfs -o size=2g none /dev/shm
  mount -t tmpfs none /run
  mkdir -p /run/sshd
  mount --bind "$1/$2/passwd" /etc/passwd
  hostname "$2"
  printf '%s\n' "ListenAddress $3" "HostKey $1/hostkey" "AuthorizedKeysFile $1/key.pub" "PasswordAuthentication no" \
    "StrictModes no" "UsePAM no" "PidFile none" "MaxStartups 100" > "$1/$2/sshd_config"
  exec env -i PATH="$PATH" /usr/sbin/sshd -D -e -f "$1/$2/sshd_config"
}

up() {  # DIR PREFIX SUBNET NUMBER
  local dir=$1 prefix=$2 subnet=$3 name names
  names="${prefix}h $(seq -f "${prefix}w%g" $(($4 - 1)))"
  down "$dir" "$prefix"
  mkdir -p "$dir"
  [ -f "$dir/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
  [ -f "$dir/hostkey" ] || ssh-keygen -q -t ed25519 -N '' -f "$dir/hostkey"
  ip netns add "${prefix}l"
  ip -n "${prefix}l" link set lo up
  ip -n "${prefix}l" link add "${prefix}br" type bridge
  ip -n "${prefix}l" addr add "$subnet.254/24" dev "${prefix}br"
  ip -n "${prefix}l" link set "${prefix}br" up
  for name in $names; do
    ip netns add "$name"
    ip -n "$name" link set lo up
    ip link add "v$name" netns "${prefix}l" type veth peer name eth0 netns "$name"
    ip -n "${prefix}l" link set "v$name" master "${prefix}br" up
    ip -n "$name" addr add "$(address "$subnet" "$prefix" "$name")/24" dev eth0
    ip -n "$name" link set eth0 up
    # Without a way out Ray takes 127.0.0.1 for the node's address.
    ip -n "$name" route add default via "$subnet.254"
    start "$dir" "$prefix" "$subnet" "$name"
  done
  start "$dir" "$prefix" "$subnet" "${prefix}l"
}

down() {  # DIR PREFIX
  local name process
  for name in $(ip netns list | awk '{print $1}' | grep -E "^$2(l|h|w[0-9]+)$" || true); do
    process=$(pid "$name")
    [ -z "$process" ] || kill -9 "$process"
    # Commands that were sent there from outside end too, and must not keep the network.
    for process in $(ip netns pids "$name"); do kill -9 "$process" 2>/dev/null || true; done
    ip netns del "$name"
  done
}

"$@"
