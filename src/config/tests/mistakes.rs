//! Mistakes in configurations, and what must be said of each.

/// What stands in the file, and what must be said: the place, the key, what was found, what would be right.
pub(super) const WRONG_SERVERS: &[(&str, &[&str])] = &[
    (
        "dns_records: [nas.home]",
        &["2:15: dns_records[0]: `nas.home` is not a whole record: write nas.home A 192.168.1.5"],
    ),
    (
        "netwrok: 10.0.0.0/24",
        &["server.yaml:2:1: netwrok: unknown key `netwrok`: did you mean `network`?"],
    ),
    ("Listen: []", &["did you mean `listen`?"]),
    (
        "admin: 0.0.0.0:9090",
        &[
            "2:8: admin: `0.0.0.0:9090` can be reached from other hosts, and there is no password: write 127.0.0.1:9090",
        ],
    ),
    (
        "admin: 9090",
        &["2:8: admin: `9090` is not an address to listen on"],
    ),
    (
        "log_level: loud",
        &["2:12: log_level: `loud` is not a log level: write error, warn"],
    ),
    (
        "client-to-client: true",
        &["did you mean `client_to_client`?"],
    ),
    (
        "proxy: 1",
        &[
            "server.yaml:2:1",
            "unknown key `proxy`: the keys here are admin, aead, allow",
        ],
    ),
    (
        "repair: sometimes",
        &["2:9: repair: `sometimes` is no way to repair: write auto, off, fixed or fixed:20%"],
    ),
    (
        "repair: 30%",
        &["2:9: repair: `30%` is an overhead: write fixed:30%"],
    ),
    (
        "repair: 12.5%",
        &["2:9: repair: `12.5%` is not a whole percentage: write one from 1% to 100%, such as 20%"],
    ),
    (
        "repair: fixed:101%",
        &["2:9: repair: `101%` is out of range: write a percentage from 1% to 100%"],
    ),
    (
        "repair: {mode: fixd}",
        &["2:16: repair.mode: `fixd` is no way to repair: did you mean fixed?"],
    ),
    (
        "repair: {mode: fixed, overhead: 0%}",
        &["repair.overhead: `0%` is out of range: write a percentage from 1% to 100%"],
    ),
    (
        "repair: {mode: fixed, overhead: 300%}",
        &["repair.overhead: `300%` is out of range: write a percentage from 1% to 100%"],
    ),
    (
        "repair: {mode: fixed, overhead: 0.2}",
        &[
            "repair.overhead: `0.2` is not a whole percentage: write one from 1% to 100%, such as 20%",
        ],
    ),
    (
        "repair: {overhead: 20%}",
        &["repair.overhead: is used only with `mode: fixed`: write {mode: fixed, overhead: 20%}"],
    ),
    (
        "repair: {mod: auto}",
        &["repair.mod: unknown key `mod`: did you mean `mode`?"],
    ),
    (
        "repair: [auto]",
        &["repair: found a list, where a single value is expected"],
    ),
    (
        "masquerade: true",
        &["unknown key `masquerade` in this place: there is `tun.masquerade`"],
    ),
    (
        "tun: {nmae: x}",
        &["2:7: tun.nmae: unknown key `nmae`: did you mean `name`?"],
    ),
    (
        "tun: adit0",
        &["2:6: tun: found a single value, where a group such as {name: …} is expected"],
    ),
    (
        "tun: {name: a-name-too-long-for-linux}",
        &["tun.name: `a-name-too-long-for-linux` is not an interface's name"],
    ),
    ("tun: {name: a/b}", &["is not an interface's name"]),
    (
        "tun: {masquerade: maybe}",
        &["tun.masquerade: `maybe` is neither true nor false: write true or false"],
    ),
    (
        "listen: [tcp://0.0.0.0]",
        &["2:10: listen[0]: `tcp://0.0.0.0` has no port: write tcp://0.0.0.0:7443"],
    ),
    (
        "listen: [0.0.0.0:7443]",
        &[
            "`0.0.0.0:7443` does not say how to connect: write udp://0.0.0.0:7443, tcp://0.0.0.0:7443, tls://0.0.0.0:7443 or wss://0.0.0.0:7443",
        ],
    ),
    (
        "listen: [sctp://0.0.0.0:7443]",
        &["`sctp` is not a kind of lane: write udp://, tcp://, tls:// or wss://"],
    ),
    (
        "listen: [tcp://vpn.example.com:1]",
        &["a server listens on an address: write tcp://0.0.0.0:1"],
    ),
    (
        "listen: [tcp://1.2.3.4:1, tls://1.2.3.4:1]",
        &["listen[1]: 1.2.3.4:1 stands twice, first at server.yaml:2:10"],
    ),
    (
        "listen: [udp://1.2.3.4:1, tls://1.2.3.4:1, udp://1.2.3.4:1]",
        &["listen[2]: 1.2.3.4:1 stands twice, first at server.yaml:2:10"],
    ),
    (
        "listen: {a: 1}",
        &["listen: found a group of keys, where a single value is expected"],
    ),
    (
        "listen: [[a]]",
        &["listen[0]: found a list, where a single value is expected"],
    ),
    (
        "network: 10.86.0.1/24",
        &["2:10: network: `10.86.0.1/24` is an address inside a network: write 10.86.0.0/24"],
    ),
    (
        "network: 10.86.0.0/33",
        &["`10.86.0.0/33` is not a network: write one like 10.86.0.0/24, or off"],
    ),
    (
        "network: 10.86.0.0/31",
        &["has the wrong size: write a network from /8 to /30"],
    ),
    (
        "network: fd86::/64",
        &["is an IPv6 network, which belongs to `network6`"],
    ),
    (
        "network: 127.0.0.0/8",
        &["`127.0.0.0/8` cannot be given to clients"],
    ),
    ("network: 224.0.0.0/8", &["cannot be given to clients"]),
    (
        "network6: 10.86.0.0/24",
        &["is an IPv4 network, which belongs to `network`"],
    ),
    (
        "network6: fe80::/64",
        &["`fe80::/64` cannot be given to clients"],
    ),
    (
        "network6: fd86::/127",
        &["wrong size: write a network from /32 to /126"],
    ),
    (
        "network: off\nnetwork6: off",
        &["3:11: network6: is off, and `network` is off too"],
    ),
    (
        "egress: kernel",
        &["2:9: egress: `kernel` is not an egress: write tun (needs CAP_NET_ADMIN) or user"],
    ),
    (
        "mtu: 1279",
        &["2:6: mtu: `1279` is out of range: write a number from 1280 to 9000"],
    ),
    ("mtu: 9001", &["`9001` is out of range"]),
    ("mtu: 99999999999", &["`99999999999` is out of range"]),
    (
        "mtu: large",
        &["`large` is not a number: write one from 1280 to 9000"],
    ),
    ("mtu: -1400", &["`-1400` is not a number"]),
    ("mtu: 0x578", &["`0x578` is not a number"]),
    (
        "mtu: [1400]",
        &["mtu: found a list, where a single value is expected"],
    ),
    (
        "allow: [192.168.7.1/24]",
        &["2:9: allow[0]: `192.168.7.1/24` is an address inside a network: write 192.168.7.0/24"],
    ),
    (
        "listen: []",
        &[
            "listen: is missing: write at least one address such as tcp://0.0.0.0:7443, or leave the key out",
        ],
    ),
    (
        "allow: everything",
        &[
            "allow: `everything` is not a network: write a network like 192.168.7.0/24 or an address",
        ],
    ),
    (
        "allow: ['::ffff:10.0.0.0/104']",
        &["is IPv4 in an IPv6 coat"],
    ),
    (
        "clients: laptop",
        &["clients: found a single value, where a list is expected: begin each item with `- `"],
    ),
    (
        "clients: [laptop]",
        &["clients[0]: found a single value, where a group of `key: value` is expected"],
    ),
    (
        "clients: [{name: a}]",
        &["clients[0].public_key: is missing: write what `adit pubkey` prints"],
    ),
    (
        "clients: [{public_key: OTHER}]",
        &["clients[0].name: is missing: give the client a name"],
    ),
    (
        "clients: [{name: a, public_key: abc}]",
        &["2:33: clients[0].public_key: `abc` is not a public key: "],
    ),
    (
        "clients: [{name: a b, public_key: OTHER}]",
        &["clients[0].name: `a b` is not a client's name"],
    ),
    (
        "clients: [{name: a, public_key: OWN}]",
        &["clients[0].public_key: this is the key of the server itself"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, addres: 10.86.0.9}]",
        &["clients[0].addres: unknown key `addres`: did you mean `address`?"],
    ),
    (
        "clients:\n- {name: a, public_key: OTHER}\n- {name: a, public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=}",
        &["4:10: clients[1].name: the name a stands twice, first at server.yaml:3:10: keep one"],
    ),
    (
        "clients:\n- {name: a, public_key: OTHER}\n- {name: b, public_key: OTHER}",
        &[
            "clients[1].public_key: the key ",
            "stands twice, first at server.yaml:3:25",
        ],
    ),
    (
        "clients: [{name: a, public_key: OTHER, address: 10.99.0.9}]",
        &["clients[0].address: `10.99.0.9` is outside 10.86.0.0/24: write an address inside it"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, address: 10.86.0.1}]",
        &["`10.86.0.1` is the gateway, the server's own: write another of 10.86.0.0/24"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, address: 10.86.0.255}]",
        &["`10.86.0.255` is not a host's address in 10.86.0.0/24"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, address: fd86::9}]",
        &["clients[0].address: `fd86::9` is not an IPv4 address: write one like 10.86.0.9"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, address6: fd87::9}]",
        &["`fd87::9` is outside fd86::/64"],
    ),
    (
        "network6: off\nclients: [{name: a, public_key: OTHER, address6: fd86::9}]",
        &["`fd86::9` has no network to be in"],
    ),
    (
        "clients:\n- {name: a, public_key: OTHER, address: 10.86.0.9}\n- {name: b, public_key: hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=, address: 10.86.0.9}",
        &["clients[1].address: the address 10.86.0.9 stands twice"],
    ),
    (
        "clients: [{name: a, public_key: OTHER, preshared_key_file: none.psk}]",
        &["clients[0].preshared_key_file: cannot read none.psk: there is no such file"],
    ),
    (
        "tls: {certificate: nope.pem, key: own.key}",
        &["tls.certificate: cannot read nope.pem: there is no such file"],
    ),
    (
        "tls: {certificate: own.key}",
        &["tls.key: is missing: a certificate needs its private key beside it"],
    ),
    (
        "tls: {key: own.key}",
        &["tls.certificate: is missing: a private key needs its certificate beside it"],
    ),
    (
        "tls: {names: [vpn example]}",
        &["tls.names[0]: `vpn example` is neither a host name nor an IP address"],
    ),
    (
        "tls: {certificate: own.key, key: own.key, names: [vpn.example.com]}",
        &["tls.names[0]: stands beside tls.certificate, which has names of its own: leave it out"],
    ),
    (
        "dns: [dns.example.com]",
        &["dns[0]: `dns.example.com` is not an IP address: write one like 9.9.9.9"],
    ),
    ("dns: [9.9.9.9:0]", &["`9.9.9.9:0` has port 0"]),
    ("dns: [0.0.0.0]", &["`0.0.0.0` is no resolver's address"]),
    (
        "client_to_client: 1",
        &["client_to_client: `1` is neither true nor false"],
    ),
    ("max_clients: 0", &["max_clients: `0` is out of range"]),
    (
        "limits: {flows_per_client: 10, half_open_per_client: 11}",
        &["limits.half_open_per_client: `11` is more than flows_per_client, 10"],
    ),
    (
        "limits: {flows: 10}",
        &[
            "limits.flows: unknown key `flows`: the keys here are flows_per_client, half_open_per_client, memory, memory_per_client",
        ],
    ),
    ("threads: none", &["threads: `none`"]),
    ("threads: 0", &["threads: `0` is out of range"]),
    (
        "limits: {memory: lots}",
        &["limits.memory: `lots` is not a size: write one like 256MiB or 1GiB"],
    ),
    (
        "limits: {memory: 256}",
        &["limits.memory: `256` is not a size"],
    ),
    (
        "limits: {memory_per_client: 1MiB}",
        &["limits.memory_per_client: `1MiB` is too little: write 4MiB or more"],
    ),
    (
        "limits: {memory: 64MiB, memory_per_client: 65MiB}",
        &["limits.memory_per_client: `65MiB` is more than memory, 64MiB"],
    ),
    (
        "aead: [aes-265-gcm]",
        &["aead[0]: `aes-265-gcm` is not a cipher: did you mean aes-256-gcm?"],
    ),
    (
        "aead: [des]",
        &["`des` is not a cipher: write one of chacha20-poly1305, aes-256-gcm"],
    ),
    (
        "aead: [aes-256-gcm, aes-256-gcm]",
        &["aead[1]: aes-256-gcm stands twice"],
    ),
    (
        "key_file: other.key",
        &["server.yaml:2:1: the key `key_file` stands here a second time: keep one of them"],
    ),
    (
        "a: b: c",
        &[
            "server.yaml:2:",
            "not valid YAML: mapping values are not allowed",
        ],
    ),
    ("allow: [", &["2:8: not valid YAML: unclosed bracket '['"]),
    (
        "egress: \"user\nmtu: 1400",
        &["server.yaml:2:9: not valid YAML: the quote that begins here does not end"],
    ),
    (
        "egress: user\n\tmtu: 1400",
        &["server.yaml:3:1: not valid YAML: a tab stands here: indent with spaces"],
    ),
    ("---\nmtu: 1400", &["a second document begins here"]),
    ("[a, b]: c", &["2:1: found a list in the place of a key"]),
];

pub(super) const WRONG_CLIENTS: &[(&str, &[&str])] = &[
    (
        "tun: sometimes",
        &["client.yaml:1:6: tun: `sometimes` is neither true nor false"],
    ),
    (
        "tun: {routes: [10.0.0.1/8]}",
        &["1:16: tun.routes[0]: `10.0.0.1/8` has bits behind its prefix: write 10.0.0.0/8"],
    ),
    (
        "tun: {exclude: [printer]}",
        &["tun.exclude[0]: `printer` is not a network: write a network such as 192.168.0.0/16"],
    ),
    (
        "tun: {exclude: [10.0.0.0/8, 10.0.0.0/8]}",
        &["1:29: tun.exclude[1]: 10.0.0.0/8 stands twice"],
    ),
    (
        "tun: {routes: [10.0.0.0/8], exclude: [10.0.0.0/8]}",
        &["tun.exclude[0]: 10.0.0.0/8 stands in tun.routes too: keep one of them"],
    ),
    (
        "tun: {routes: [10.0.0.0/8], kill_switch: true}",
        &[
            "tun.kill_switch: a kill switch lets nothing past the tunnel, and tun.routes leads a part",
        ],
    ),
    ("tun: {name: a/b}", &["tun.name: "]),
    (
        "tun: {masquerade: true}",
        &["tun.masquerade: unknown key `masquerade`"],
    ),
    (
        "dns: 5353",
        &["client.yaml:1:6: dns: `5353` is a port alone: write 127.0.0.1:5353"],
    ),
    (
        "dns: 127.0.0.1",
        &["dns: `127.0.0.1` has no port: write 127.0.0.1:5353"],
    ),
    (
        "dns: 0.0.0.0:53",
        &["dns: `0.0.0.0:53` is every address of this host: write one of them"],
    ),
    (
        "dns: {listen: '192.0.2.1:53'}",
        &[
            "dns.listen: `192.0.2.1:53` can be reached from other hosts",
            "listen on 127.0.0.1, or say open: true",
        ],
    ),
    (
        "dns: [127.0.0.1:53]",
        &["dns: found a list, where a single value is expected"],
    ),
    (
        "dns: {listne: x}",
        &["dns.listne: unknown key `listne`: did you mean `listen`?"],
    ),
    (
        "dns: {upstream: [quad9]}",
        &[
            "dns.upstream[0]: `quad9` is not a name server: write an address such as 9.9.9.9, tls://",
        ],
    ),
    (
        "dns: {upstream: [9.9.9.9, 9.9.9.9]}",
        &["dns.upstream[1]: 9.9.9.9 stands twice"],
    ),
    (
        "dns: {split: [corp.example]}",
        &["dns.split[0]: `corp.example` does not say whom to ask: write corp.example=10.0.0.53"],
    ),
    (
        "dns: {split: [lan=system, lan=9.9.9.9]}",
        &["dns.split[1]: sends the names to 9.9.9.9, and lan=system stands before: keep one"],
    ),
    (
        "dns: {records: [nas.home A 192.168.1]}",
        &["dns.records[0]: `192.168.1` is not an IPv4 address"],
    ),
    (
        "dns: {records: [a.test CNAME b.test, a.test A 1.2.3.4]}",
        &[
            "dns.records[1]: stands beside `a.test CNAME b.test`, and a name with a CNAME has no other record",
        ],
    ),
    (
        "dns: {block: [nowhere.txt]}",
        &[
            "dns.block[0]: cannot read",
            "nowhere.txt: there is no such file",
        ],
    ),
    (
        "dns: {allow: /dev/null}",
        &["dns.allow: cannot read /dev/null: this is a device, not a file"],
    ),
    (
        "dns: {block: ['ftp://a.test/x']}",
        &["dns.block[0]: `ftp://` cannot be fetched: write http:// or https://"],
    ),
    (
        "dns: {blocked: drop}",
        &["dns.blocked: `drop` is no answer for a blocked name: write nxdomain, or zero"],
    ),
    (
        "dns: {refresh: 1s}",
        &["dns.refresh: `1s` is out of range: write a duration from 60s to 7776000s"],
    ),
    (
        "",
        &[
            "client.yaml: server: is missing: write where the server is reached",
            "(or set ADIT_SERVER)",
            "client.yaml: server_key: is missing",
            "client.yaml: key_file: is missing",
        ],
    ),
    (
        "- a\n- b",
        &["client.yaml:1:1: found a list, where lines of `key: value` are expected"],
    ),
    (
        "server: tcp://a:1\nlanes: 0",
        &["client.yaml:2:8: lanes: `0` is out of range: write a number from 1 to 8"],
    ),
    (
        "lanes: 9",
        &["lanes: `9` is out of range: write a number from 1 to 8"],
    ),
    (
        "lanes: three",
        &["lanes: `three` is not a number: write one from 1 to 8"],
    ),
    ("lane: 3", &["unknown key `lane`: did you mean `lanes`?"]),
    (
        "listen: 127.0.0.1:1080",
        &["listen: unknown key `listen`: it is called `proxy` here"],
    ),
    (
        "just words",
        &["found a single value, where lines of `key: value` are expected"],
    ),
    (
        "server: vpn.example.com\n",
        &["1:9: server: `vpn.example.com` does not say how to connect"],
    ),
    (
        "server: tcp://0.0.0.0:7443\n",
        &["`0.0.0.0` is where a server listens, not where it is reached"],
    ),
    ("server: tcp://h:0\n", &["`tcp://h:0` has port 0"]),
    (
        "server: [tcp://h:1, tcp://h:1]\n",
        &["server[1]: tcp://h:1 stands twice, first at client.yaml:1:10"],
    ),
    (
        "server_key: own.key\n",
        &[
            "1:13: server_key: `own.key` is not a public key",
            "`adit pubkey` shows",
        ],
    ),
    (
        "server_key: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n",
        &["1:13: server_key: `AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=` can be nobody's"],
    ),
    (
        "server_key: OWN\nkey_file: own.key\n",
        &["1:13: server_key: this is the key of the client itself"],
    ),
    (
        "key_file: none.key\n",
        &["1:11: key_file: cannot read none.key: there is no such file"],
    ),
    (
        "key_file: .\n",
        &["key_file: cannot read ", "this is a folder, not a file"],
    ),
    (
        "key_file: client.yaml\n",
        &[
            "key_file: ",
            "may be used by others than you",
            "run chmod 600",
        ],
    ),
    (
        "key_file: empty.key\n",
        &["empty.key holds no key: ", "`adit keygen` makes one"],
    ),
    ("key_file: ''\n", &["key_file: `` is not a path"]),
    (
        "proxy: 1080\n",
        &["1:8: proxy: `1080` is a port alone: write 127.0.0.1:1080"],
    ),
    (
        "proxy: 127.0.0.1\n",
        &["`127.0.0.1` has no port: write an address and a port such as 127.0.0.1:1080"],
    ),
    (
        "proxy: socks5://127.0.0.1:1080\n",
        &["is a URL: write an address and a port"],
    ),
    (
        "rules: [direct 10.0.0.0/8, blok a.example]\n",
        &["1:28: rules[1]: `blok` is no action: did you mean block?"],
    ),
    (
        "rules: {direct: a.example}\n",
        &["1:8: rules: found a group of keys, where a single value is expected"],
    ),
    (
        "rule: [block *]\n",
        &["unknown key `rule`: did you mean `rules`?"],
    ),
    (
        "proxies: [{rules: [block *]}]\n",
        &[
            "1:11: proxies[0].listen: is missing: write where this proxy listens, such as 127.0.0.1:1081",
        ],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1081, rules: [block]}]\n",
        &["1:44: proxies[0].rules[0]: `block` does not say what it is about: write `block *`"],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1080}]\n",
        &["proxies[0].listen: 127.0.0.1:1080 is where `proxy` listens: write another port"],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1081}, {listen: 127.0.0.1:1081}]\n",
        &["proxies[1].listen: 127.0.0.1:1081 stands twice, first at client.yaml:1:20"],
    ),
    (
        "proxies: [{listen: 0.0.0.0:1081}]\n",
        &[
            "proxies[0].listen: `0.0.0.0:1081` can be reached from other hosts",
            "set user and password, or say open: true",
        ],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1081, user: bob}]\n",
        &["proxies[0].user: has no password: set password or password_file too"],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1081, user: bob, password: x, open: true}]\n",
        &["proxies[0].open: stands beside a password: keep one of the two"],
    ),
    (
        "proxies: [{listen: 127.0.0.1:1081, proxy_user: bob}]\n",
        &["proxies[0].proxy_user: unknown key `proxy_user`"],
    ),
    (
        "proxies: 127.0.0.1:1081\n",
        &["1:10: proxies: found a single value, where a list is expected"],
    ),
    (
        "proxy: box:1080\n",
        &["`box:1080` is not an address to listen on"],
    ),
    (
        "proxy: 0.0.0.0:1080\n",
        &["can be reached from other hosts", "say proxy_open: true"],
    ),
    ("proxy: '[::]:1080'\n", &["can be reached from other hosts"]),
    (
        "proxy_user: alice\n",
        &["1:13: proxy_user: has no password: set proxy_password or proxy_password_file too"],
    ),
    (
        "proxy_password: secret\n",
        &["1:17: proxy_password: has no user name: set proxy_user too"],
    ),
    (
        "proxy_user: 'a:b'\nproxy_password: x\n",
        &["proxy_user: holds a colon"],
    ),
    (
        "proxy_user: a\nproxy_password: ''\n",
        &["proxy_password: has 0 bytes: write 1 to 255"],
    ),
    (
        "proxy_user: a\nproxy_password: x\nproxy_password_file: own.key\n",
        &["3:22: proxy_password_file: stands beside proxy_password"],
    ),
    (
        "proxy_user: a\nproxy_password_file: empty.key\n",
        &["proxy_password_file: the password in it has 0 bytes"],
    ),
    (
        "tls: {pin: [abc]}\n",
        &["1:13: tls.pin[0]: `abc` is not a pin: write the SHA-256"],
    ),
    (
        "tls: {ca_file: none.pem}\n",
        &["tls.ca_file: cannot read none.pem"],
    ),
    (
        "tls: {ca_file: own.key, system: true}\n",
        &["tls.system: stands beside tls.ca_file, and a certificate is checked in one way"],
    ),
    (
        "connect_timeout: soon\n",
        &["`soon` is not a duration: write one like 10s, 500ms or 2m"],
    ),
    (
        "connect_timeout: 1h\n",
        &["`1h` is out of range: write a duration from 1s to 120s"],
    ),
    (
        "connect_timeout: 99999999999999999999h\n",
        &["is not a duration"],
    ),
    (
        "via: http://u:s3cret@proxy\n",
        &["1:6: via: has no port: write http://HOST:PORT, https://HOST:PORT, socks5://"],
    ),
    (
        "via: proxy:3128\n",
        &["via: does not say what kind of proxy it is: write http://"],
    ),
    (
        "via: socks5://127.0.0.1:1080\n",
        &["via: socks5://127.0.0.1:1080 is this client's own proxy"],
    ),
    (
        "server: udp://h:1\nvia: http://proxy:1\n",
        &["via: no proxy carries datagrams, and every server is udp://: add one by tls://"],
    ),
    (
        "via_password_file: own.key\n",
        &["via_password_file: has no proxy to be for: set via too"],
    ),
    (
        "via: http://proxy:1\nvia_password_file: own.key\n",
        &["via_password_file: has no user: write one in via"],
    ),
    (
        "via: http://u:p@proxy:1\nvia_password_file: own.key\n",
        &["via_password_file: stands beside a password in via"],
    ),
    ("listen: [tcp://0.0.0.0:1]\n", &["unknown key `listen`"]),
    (
        "proxy_pasword: x\n",
        &["unknown key `proxy_pasword`: did you mean `proxy_password`?"],
    ),
];
