#!/bin/sh
# The first process of the node's machine, in namespaces of its own: makes its file system, then waits until it is killed.
#
#   machine.sh FOLDER BOOT_ID NAME [KEEP...]     (started by host.py)
#
# Nothing that is mounted here is seen outside, and all of it goes when this process does. FOLDER/disk holds what outlives
# a reboot. Each KEEP, and FOLDER, stays visible at its path even below a folder that is replaced.
# The line "ready" on its output says that the machine is up.
set -eu
folder=$1 boot_id=$2 name=$3
shift 3

mount --make-rprivate /
echo "$name" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run

# A kubelet sets these for the whole kernel unless they are already as it wants them. Here they say so.
substitute() { # FILE-BELOW-/proc/sys VALUE
    [ -e "/proc/sys/$1" ] || return 0
    mkdir -p "/run/sysctl/${1%/*}"
    echo "$2" >"/run/sysctl/$1"
    mount --bind "/run/sysctl/$1" "/proc/sys/$1"
}
substitute vm/overcommit_memory 1
substitute vm/panic_on_oom 0
substitute kernel/panic 10
substitute kernel/panic_on_oops 1
substitute kernel/keys/root_maxkeys 1000000
substitute kernel/keys/root_maxbytes 25000000
substitute kernel/random/boot_id "$boot_id"

# What must stay is held while its surroundings are replaced.
mkdir -p "$folder/disk/var-lib" "$folder/disk/var-log"
number=0
for path in "$folder" "$@"; do
    number=$((number + 1))
    mkdir -p "/run/keep/$number"
    mount --rbind "$path" "/run/keep/$number"
done
mount --bind /run/keep/1/disk/var-lib /var/lib
mount --bind /run/keep/1/disk/var-log /var/log
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /dev/shm
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs /tmp
number=0
for path in "$folder" "$@"; do
    number=$((number + 1))
    case $path in
    /var/lib/* | /var/log/* | /dev/shm/* | /tmp/*)
        mkdir -p "$path"
        mount --rbind "/run/keep/$number" "$path"
        ;;
    esac
    umount --lazy --recursive "/run/keep/$number"
done

# A kubelet wants what is mounted below it to be seen in all containers that ask for it.
mount --make-rshared /

# Orphans end unnoticed: the kernel reaps them for a parent that ignores SIGCHLD.
trap '' CHLD
echo ready
exec sleep infinity >/dev/null
