#!/bin/sh
# The init process of the node's machine, in its own namespaces: mounts the file system, then waits until it is killed.
#
#   machine.sh FOLDER BOOT_ID NAME [KEEP...]     (started by machine.py)
#
# The mounts aren't visible outside, and the kernel removes them when this process ends. FOLDER/disk holds the data that
# survives a reboot. FOLDER and each KEEP stay visible at their paths, also below a folder that is replaced.
# Prints the line "ready" when the machine is ready.
set -eu
folder=$1 boot_id=$2 name=$3
shift 3

mount --make-rprivate /
echo "$name" >/proc/sys/kernel/hostname
mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run

# The kubelet would set these for the whole kernel unless they have the right values; here they have, for this machine.
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

# Bind-mount the folders to keep elsewhere while their parents are replaced.
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

# The kubelet needs shared mount propagation.
mount --make-rshared /

# The kernel reaps orphans for a parent that ignores SIGCHLD.
trap '' CHLD
echo ready
exec sleep infinity >/dev/null
