#!/bin/sh
# What happens to the package's services where systemd is process 1: /out has the package and a later revision of it.
set -eu
say() { echo "service: $* ($(cut -d. -f1 /proc/uptime) s)"; }
wrong() {
    say "$*"; systemctl status --no-pager --full adit-server adit-client || true
    journalctl --no-pager --output short-precise --unit adit-server --unit adit-client | tail -60
    exit 1
}
of() { systemctl show --property "$2" --value "$1"; }
# The first page through the proxy.
page() {
    got=$(curl -sS --max-time 30 -x socks5h://127.0.0.1:1080 http://127.0.0.1:8000/ 2>&1) || true
    test "$got" = page || wrong "no page: $got"
}
# A page once there is one again: a connection may still have been opened in the session that ended.
page_again() { until_so 'test "$(curl -sS --max-time 5 -x socks5h://127.0.0.1:1080 http://127.0.0.1:8000/)" = page'; }
# Waits for what must come to be: `until_so CONDITION`.
until_so() { timeout 60 sh -c "until $1; do sleep 0.2; done" > /dev/null 2>&1 || wrong "never so: $1"; }
runs() {
    test "$(of "$1" ActiveState)/$(of "$1" SubState)" = active/running || wrong "$1 does not run"
}
# What was stopped has ended by itself, in time and with success; else systemd says what was wrong in place of that.
stopped() {
    journalctl --output cat --unit "$1" _PID=1 | grep -v 'Consumed\|^Stopped' | tail -1 | grep -q 'Deactivated successfully' || wrong "$1 did not end well"
}
capabilities() { sed -n 's/^CapEff:\t0*//p' "/proc/$(of "$1" MainPID)/status"; }
score() { systemd-analyze security --no-pager "$1" | sed -n 's/^.*Overall exposure level for .*: \([0-9.]*\) .*/\1/p'; }
ip link set lo up 2> /dev/null || true
uname -sr; systemctl --version | head -1

dpkg --install /out/first.deb > /dev/null
for unit in adit-server adit-client; do
    test "$(systemctl is-enabled $unit)/$(systemctl is-active $unit)" = disabled/inactive || wrong "$unit is not as it came"
done
systemd-analyze verify adit-server.service adit-client.service
scores="$(score adit-server) for the server with egress \`tun\`, $(score adit-client) for the client"
tr '\n' ' ' < /usr/share/doc/adit/docs/server.md | grep -qF "$scores" || wrong "docs/server.md does not say: $scores"
say "installed; systemd-analyze verify has no complaint, security: $scores"

# This kernel has no NAT. A server with a TUN device says so, tries again, and leaves nothing.
if systemctl start adit-server 2> /dev/null; then
    runs adit-server
    say "egress tun: runs"
else
    journalctl --output cat --unit adit-server | grep -q "nft_chain_nat" || wrong "the error does not name what is missing"
    test "$(of adit-server ActiveState)/$(of adit-server SubState)" = activating/auto-restart || wrong "no other try"
    say "egress tun: $(journalctl --output cat --unit adit-server | grep '^adit: ' | tail -1)"
fi
systemctl stop adit-server
test ! -e /sys/class/net/adit0 || wrong "adit0 is still there"

# An origin for the first page, of systemd's own, and a server that lets clients go there.
cat > /etc/systemd/system/origin.socket <<UNIT
[Socket]
ListenStream=127.0.0.1:8000
Accept=yes
UNIT
cat > /etc/systemd/system/origin@.service <<'UNIT'
[Service]
StandardInput=socket
ExecStart=/bin/sh -c 'while read -r line && test $${#line} -gt 1; do :; done; printf "HTTP/1.0 200 OK\\r\\nContent-Length: 4\\r\\n\\r\\npage"'
UNIT
sed -i 's/^egress: tun/egress: user\nallow: [127.0.0.1]/' /etc/adit/server.yaml
systemctl daemon-reload
systemctl start origin.socket adit-server
runs adit-server
test "$(journalctl --output cat --unit adit-server | grep -c '^public key: ')" = 1 || wrong "not one key was made"
test "$(capabilities adit-server)" = 1400 || wrong "the server has the rights $(capabilities adit-server)"
test "$(stat -c %U:%a /var/lib/adit/server.key)" = adit:600 || wrong "the key is not the server's alone"
test "$(adit health)" = listening || wrong "the server cannot be asked"
say "server: $(of adit-server StatusText)"

# The key is made at the first start of the client's life, too: by join.
adit invite laptop --address 127.0.0.1 2>&1 | sed -n 's,^.*\(adit://[^ ]*\).*,\1,p' > /run/link
adit join - --no-start --config /etc/adit/client.yaml < /run/link
systemctl start adit-client
runs adit-client
until_so "adit health --config /etc/adit/client.yaml"
page
user=$(stat -c %U:%u "/proc/$(of adit-client MainPID)")
test "${user#*:}" -ge 61184 || wrong "the client is no dynamic user: $user"
test "$(capabilities adit-client)" = "" || wrong "the client has rights: $(capabilities adit-client)"
test "$(stat -c %U:%a /etc/adit/client.key)" = root:600 || wrong "the key is not root's alone"
curl -sS --max-time 30 -x http://127.0.0.1:1080 http://127.0.0.1:8000/ | grep -q page || wrong "no page by HTTP"
adit status --config /etc/adit/client.yaml | tail -2
adit status --config /etc/adit/server.yaml | grep -q '^laptop ' || wrong "the server does not know who is there"
inner() { adit status --config /etc/adit/server.yaml | sed -n 's/^laptop  *\([0-9.]*\).*/\1/p'; }
address=$(inner)
say "client with the address $address: $(of adit-client StatusText)"

# Reload: what is right is in force, what is wrong is told and changes nothing.
server=$(of adit-server MainPID) client=$(of adit-client MainPID)
echo 'rules: [block 127.0.0.9]' >> /etc/adit/client.yaml
echo 'client_to_client: true' >> /etc/adit/server.yaml
systemctl reload adit-server adit-client
journalctl --output cat --unit adit-server | grep '^in force: .*client_to_client' || wrong "not in force"
journalctl --output cat --unit adit-client | grep '^in force: .*rules' || wrong "not in force"
for kind in server client; do
    cp /etc/adit/$kind.yaml /run/right.yaml
    echo 'wrong: 1' >> /etc/adit/$kind.yaml
    ! systemctl reload adit-$kind 2> /dev/null || wrong "a wrong file was taken"
    journalctl --output cat --unit adit-$kind | grep '^adit: .*/etc/adit/'$kind'.yaml.*wrong' || wrong "the mistake is not told"
    cp /run/right.yaml /etc/adit/$kind.yaml
done
test "$server/$client" = "$(of adit-server MainPID)/$(of adit-client MainPID)" || wrong "a reload has restarted something"
page
say "reloaded"

# Killed, both come back.
kill -KILL "$client"
until_so "systemctl is-active adit-client && test \$(systemctl show --property MainPID --value adit-client) != $client"
until_so "adit health --config /etc/adit/client.yaml"
page_again
test "$(inner)" = "$address" || wrong "after a kill the client has the address $(inner)"
kill -KILL "$server"
until_so "systemctl is-active adit-server && test \$(systemctl show --property MainPID --value adit-server) != $server"
until_so "adit health --config /etc/adit/client.yaml"
page_again
say "killed, and back by themselves, the client with its address"
for kind in server client; do
    systemctl restart adit-$kind
    until_so "adit health --config /etc/adit/client.yaml"
    page_again
done
say "restarted"

# Without a server the client starts all the same, and nobody waits for it; it connects when there is one.
systemctl stop adit-server
stopped adit-server
systemctl restart adit-client
runs adit-client
! adit health --config /etc/adit/client.yaml 2> /dev/null || wrong "it has a session with nobody"
# with egress user no right is needed
mkdir /etc/systemd/system/adit-server.service.d
printf '[Service]\nAmbientCapabilities=\nCapabilityBoundingSet=\nDeviceAllow=\n' > /etc/systemd/system/adit-server.service.d/user.conf
systemctl daemon-reload
systemctl start adit-server
test "$(capabilities adit-server)" = "" || wrong "the server has rights: $(capabilities adit-server)"
until_so "adit health --config /etc/adit/client.yaml"
page
say "server without rights, and later than the client; security: $(score adit-server)"

# A wrong configuration is no reason to try again and again.
systemctl stop adit-client
stopped adit-client
cp /etc/adit/client.yaml /run/right.yaml; echo 'wrong: 1' >> /etc/adit/client.yaml
! systemctl start adit-client 2> /dev/null || wrong "it runs by a wrong configuration"
test "$(of adit-client ActiveState)/$(of adit-client ExecMainStatus)" = failed/2 || wrong "not given up"
cp /run/right.yaml /etc/adit/client.yaml
systemctl start adit-client
say "wrong configuration: not started, once it is right it is"

# The package is upgraded below the running services, then removed.
systemctl --quiet enable adit-server adit-client 2> /dev/null
server=$(of adit-server MainPID) client=$(of adit-client MainPID)
dpkg --install /out/second.deb > /dev/null
for unit in adit-server adit-client; do
    runs $unit
    systemctl --quiet is-enabled $unit || wrong "$unit is not enabled any more"
done
test "$server" != "$(of adit-server MainPID)" && test "$client" != "$(of adit-client MainPID)" || wrong "the former program runs"
until_so "adit health --config /etc/adit/client.yaml"
page
say "upgraded: both run anew, still enabled"
dpkg --remove adit > /dev/null 2>&1
for unit in adit-server adit-client; do
    test "$(of $unit ActiveState)" = inactive || wrong "$unit is $(of $unit ActiveState)"
    stopped $unit
done
! ls -l /proc/[0-9]*/exe 2> /dev/null | grep '/adit$' || wrong "it runs still"
test -e /etc/adit/server.yaml && test -e /var/lib/adit/server.key && test -e /etc/adit/client.key || wrong "removing took what is kept"
rm -r /etc/systemd/system/adit-server.service.d
dpkg --purge adit > /dev/null 2>&1
left=$(find /etc /run /var /usr/bin /usr/lib/systemd /usr/share/doc /usr/share/adit /usr/share/lintian \
    -path /var/cache/man -prune -o \( -name 'adit*' -o -name '_adit' \) -print 2> /dev/null || true)
test -z "$left" || wrong "left behind: $(find $left -ls)"
say "removed and purged while running: ended well, nothing left"
