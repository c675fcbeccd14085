#!/bin/sh
# enter.sh DIR COMMAND...: run a command in every namespace and cgroup of the host whose state is in DIR; 255 if it is down.
D=$1
shift
P=
if N=$(cat "$D/nspawn.pid" 2>/dev/null) && [ -n "$N" ] && [ -r "/proc/$N/task/$N/children" ]; then
    read -r P _ < "/proc/$N/task/$N/children" || :
fi
[ -n "$P" ] || { echo "lab: ${D##*/} is down" >&2; exit 255; }
while read -r g; do
    if [ -d "$g/payload" ]; then g="$g/payload/exec"; mkdir -p "$g"; fi
    if [ -w "$g/cgroup.procs" ]; then { echo $$ > "$g/cgroup.procs"; } 2>/dev/null || :; fi
done < "$D/cgroups"
exec nsenter -t "$P" -a env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb "$@"
