#!/bin/sh
# boot.sh DIR: run the host whose state is in DIR until it powers off; started once per power-on, in a session of its own.
# DIR/env gives NAME (unique), HOSTNAME, NETNS, LAYOUT (v1 or v2) and BINDS (more nspawn options).
set -eu
D=$1
. "$D/env"
: > "$D/cgroups"
if [ "$LAYOUT" = v1 ]; then
    # Controllers that nspawn leaves where the caller is get a group of the host's own, so that it sees a root that is its own.
    for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
        [ -d "/sys/fs/cgroup/$c" ] || continue
        own=$(sed -n "s/^[0-9]*:\(.*,\)\{0,1\}$c\(,.*\)\{0,1\}:\(.*\)/\3/p" /proc/self/cgroup | head -1)
        g="/sys/fs/cgroup/$c${own%/}/$NAME"
        mkdir -p "$g"
        if [ "$c" = cpuset ]; then cat "$g/../cpuset.cpus" > "$g/cpuset.cpus"; cat "$g/../cpuset.mems" > "$g/cpuset.mems"; fi
        echo "$g" >> "$D/cgroups"
    done
    for c in systemd unified; do
        [ -d "/sys/fs/cgroup/$c" ] || continue
        mkdir -p "/sys/fs/cgroup/$c/$NAME"
        echo "/sys/fs/cgroup/$c/$NAME" >> "$D/cgroups"
    done
    while read -r g; do echo $$ > "$g/cgroup.procs"; done < "$D/cgroups"
else
    echo "/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)" >> "$D/cgroups"
fi
while :; do
    # Nothing runs yet: the groups of an earlier life go, as with a real loss of power. A kubelet looks for each container whose group it finds.
    while read -r g; do find "$g" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null || :; done < "$D/cgroups"
    rc=0
    # shellcheck disable=SC2086
    (echo "$(sh -c 'echo $PPID')" > "$D/nspawn.pid"; exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 SYSTEMD_SECCOMP=0 \
        systemd-nspawn --quiet --directory="$D/root" --machine="$NAME" --hostname="$HOSTNAME" --register=no --keep-unit --console=pipe \
        --kill-signal=SIGRTMIN+3 --network-namespace-path="/run/netns/$NETNS" --capability=all --private-users=no \
        --resolv-conf=off --timezone=off --link-journal=no $BINDS -- /sbin/lab-init) || rc=$?
    [ "$rc" = 133 ] || exit "$rc" # 133: the host wants to reboot
done
