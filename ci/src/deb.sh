#!/bin/sh
# What happens to a package: $1 is the package, $2 a later revision of it, $3 the root to copy.
set -eu
first=$1 second=$2 root=$3
say() { echo "deb: $*"; }
mount --make-rprivate /
work=$(mktemp -d)
mount -t tmpfs tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$work/upper,workdir=$work/work" "$work/root"
cp "$first" "$work/root/first.deb"; cp "$second" "$work/root/second.deb"
mount -t proc proc "$work/root/proc"
mkdir -p "$work/root/dev"; mount --rbind /dev "$work/root/dev"
printf '#!/bin/sh\nexit 101\n' > "$work/root/usr/sbin/policy-rc.d"; chmod +x "$work/root/usr/sbin/policy-rc.d"
run() { DEBIAN_FRONTEND=noninteractive chroot "$work/root" "$@"; }
present() { test -e "$work/root$1" || { say "$1 is not there"; exit 1; }; }
absent() { test ! -e "$work/root$1" || { say "$1 is still there"; exit 1; }; }

find "$work/root/etc" "$work/root/usr" "$work/root/var/lib/adit" 2>/dev/null | sort > "$work/before" || true
run dpkg --install /first.deb
for file in /usr/bin/adit /usr/share/man/man1/adit-server.1.gz /usr/share/bash-completion/completions/adit \
    /usr/share/zsh/vendor-completions/_adit /usr/share/fish/vendor_completions.d/adit.fish /etc/adit/server.yaml \
    /usr/lib/systemd/user/adit-client.service; do
    present "$file"
done
unit=$(run dpkg -L adit | grep adit-server.service); say "unit: $unit"
run adit --version
run id adit
run adit check /etc/adit/server.yaml
# the manual page is looked for by a program that need not be there
if run sh -c 'command -v systemd-analyze' > /dev/null; then
    run env XDG_RUNTIME_DIR=/run systemd-analyze --user --man=no verify /usr/lib/systemd/user/adit-client.service
fi
say "installed"

echo "# kept" >> "$work/root/etc/adit/server.yaml"
mkdir -p "$work/root/var/lib/adit"; echo state > "$work/root/var/lib/adit/leases"
run dpkg --install /second.deb
grep -q '^# kept$' "$work/root/etc/adit/server.yaml" || { say "the configuration was replaced"; exit 1; }
present /var/lib/adit/leases
test "$(run dpkg-query --show --showformat '${Version}' adit | sed 's/.*-//')" = 2
say "upgraded, the configuration kept"

run dpkg --remove adit
absent /usr/bin/adit; absent "$unit"; present /etc/adit/server.yaml; present /var/lib/adit/leases
say "removed, configuration and state kept"

run dpkg --purge adit
absent /etc/adit; absent /var/lib/adit; absent /etc/apparmor.d/adit
find "$work/root/etc" "$work/root/usr" "$work/root/var/lib/adit" 2>/dev/null | sort > "$work/after" || true
left=$(comm -13 "$work/before" "$work/after" | grep -vE '^.*/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$' || true)
test -z "$left" || { say "left behind: $left"; exit 1; }
say "purged, nothing left but the user"
