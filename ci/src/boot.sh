#!/bin/sh
# The first process of the kernel that ci/src/service.rs boots: makes a copy of the machine whose root folder is
# $ADIT_ROOT, for as long as the kernel runs, and has systemd start in it what lies in the folder $ADIT_OUT.
set -eu
trap 'echo "not booted"; sync; halt -f' EXIT
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs tmp /run
mkdir -p /run/modules/lib /run/copy; ln -s /usr/lib/uml/modules /run/modules/lib/modules
for module in overlay ipv6 tun; do modprobe -d /run/modules "$module"; done
mount -t tmpfs -o size=400m tmp /run/copy; mkdir /run/copy/upper /run/copy/work /run/copy/root
mount -t overlay overlay -o "lowerdir=$ADIT_ROOT,upperdir=/run/copy/upper,workdir=/run/copy/work" /run/copy/root
cd /run/copy/root

# A host and no container, of which only the bare system starts, and none of what this machine serves.
rm -rf .dockerenv run/.containerenv etc/adit var/lib/adit etc/fstab usr/sbin/policy-rc.d etc/systemd/system/*.wants
echo 0123456789abcdef0123456789abcdef > etc/machine-id
for unit in systemd-udevd.service systemd-udev-trigger.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
    systemd-update-utmp.service systemd-journal-flush.service; do
    ln -sf /dev/null "etc/systemd/system/$unit"
done
# dpkg reads the lists of every package there is, which takes long in here: a few are enough.
awk 'BEGIN { RS = ""; ORS = "\n\n" } /^Package: (adduser|dpkg|init-system-helpers|systemd)\n/' var/lib/dpkg/status > /run/status
for package in adduser dpkg init-system-helpers systemd; do
    cat "var/lib/dpkg/info/$package.list" > "/run/$package.list"
done
rm -rf var/lib/dpkg/info var/lib/dpkg/triggers; mkdir var/lib/dpkg/info var/lib/dpkg/triggers
mv /run/status var/lib/dpkg/status; mv /run/*.list var/lib/dpkg/info/

mkdir -p out former lib/modules
mount -t hostfs -o "$ADIT_OUT" none out
mount -t hostfs -o /usr/lib/uml/modules none lib/modules
mount -t tmpfs tmp tmp; mount -t tmpfs tmp var/tmp
cat > etc/systemd/system/life.service <<UNIT
[Unit]
Requires=basic.target
After=basic.target
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
Environment=LC_ALL=C HOME=/root
ExecStart=/bin/sh -c 'sh /out/life; echo \$? > /out/status'
StandardOutput=append:/out/log
StandardError=append:/out/log
UNIT
trap - EXIT
pivot_root . former
exec chroot . /bin/sh -c 'umount -l /former; rmdir /former; exec /lib/systemd/systemd --unit=life.service'
