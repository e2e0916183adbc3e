//! No packet of a command leaves outside the tunnel.

use std::{fs, time::Duration};

use adit_integration::{
    adit::{User, path},
    namespaces::{EGRESS4, SERVER4},
    process::Process,
    skip::{Need, can_run},
    sniff::Sniffer,
};

use crate::{
    NEEDS, PORT, SOON,
    scene::{Scene, tunnel_process, wait_for},
};

#[test]
fn no_packet_of_a_command_leaves_outside_the_tunnel() {
    if !can_run(NEEDS) || !can_run(&[Need::Tool("nft"), Need::Tool("perl"), Need::Tool("ping")]) {
        return;
    }
    let mut scene = Scene::user("tcp");
    let place = scene.lab.client.clone();
    // resolvers of the host, which would ask for whoever comes
    let asked = scene.workdir.state("asked", User::Nobody);
    place.shell("mount -t tmpfs tmpfs /run; mkdir -p /run/nscd /run/systemd/resolve /run/avahi-daemon /run/dbus");
    let mut traps = place.command("perl");
    traps.args([
        "-MIO::Socket::UNIX",
        "-MIO::Select",
        "-e",
        TRAPS,
        path(&asked),
    ]);
    let traps = Process::spawn("resolvers of the host", traps);
    assert!(
        traps
            .wait_for_line(SOON, |line| line == "listening")
            .is_some()
    );
    let mut sniffer = Sniffer::start(&place, SERVER4.into(), PORT);

    // both see what there is to see
    place.try_run("getent hosts trap.example");
    wait_for("the trap springs", || asked.join("nscd").exists());
    place.try_run("ping -c 1 -W 1 10.77.1.2");
    wait_for("the sniffer sees", || !sniffer.strange().is_empty());
    fs::remove_file(asked.join("nscd")).expect("it is there");
    // answers that are late
    std::thread::sleep(Duration::from_millis(300));
    sniffer.forget();

    let (cut, end) = (asked.join("cut"), asked.join("end"));
    let script = format!(
        "export RES_OPTIONS='timeout:1 attempts:1'
         restless() {{
           getent hosts four.example & getent ahosts both.example & curl -sS -m 1 {url} & curl -sS -m 1 http://10.77.1.2:9/ &
           ping -c 1 -W 1 10.77.1.2 & ping -c 1 -W 1 10.77.1.1 & wait; ls /run/nscd /run/systemd/resolve /run/avahi-daemon /run/dbus;
           (echo x > /dev/udp/10.77.1.2/53); (echo x > /dev/udp/224.0.0.251/5353)
         }} 2>&1
         echo running; until test -e {end}; do restless; test -e {cut} && echo restless while cut; sleep 0.1; done
         restless; curl -sS -m 5 {url} && echo alive",
        url = scene.four.url("/peer"),
        end = end.display(),
        cut = cut.display(),
    );
    // also while there is no tunnel yet
    scene.server.kill();
    let command = scene.command_with(&["--no-wait"], &["bash", "-c", &script]);
    let mut process = Process::spawn("command", command);
    assert!(
        process
            .wait_for_line(SOON, |line| line == "running")
            .is_some()
    );
    std::thread::sleep(Duration::from_millis(500));
    scene.server =
        scene
            .workdir
            .start_server(&scene.lab.server, User::Nobody, &scene.server_config);
    let through = format!("{EGRESS4}:");
    let got_through = |line: &str| line.starts_with(&through);
    assert!(
        process.wait_for_line(SOON, got_through).is_some(),
        "{}",
        process.text()
    );
    place.cut(PORT);
    fs::write(&cut, "").expect("writes into its own folder");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "restless while cut")
            .is_some()
    );
    std::thread::sleep(Duration::from_secs(2));
    place.mend();
    fs::write(&end, "").expect("writes into its own folder");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "alive")
            .is_some(),
        "{}",
        process.text()
    );
    assert!(process.wait(SOON).is_some());
    // and with the tunnel process killed
    let process = scene.start("echo running; sleep 0.5; curl -sS -m 2 http://11.0.0.2/peer; getent hosts four.example; ip -o link | wc -l");
    assert!(
        process
            .wait_for_line(SOON, |line| line == "running")
            .is_some()
    );
    let tunnel = tunnel_process(&scene.client_config).expect("there is a tunnel process");
    // SAFETY: a plain system call; the process was seen to be ours just now.
    unsafe { libc::kill(tunnel.cast_signed(), libc::SIGKILL) };
    assert!(
        process.wait_for_line(SOON, |line| line == "1").is_some(),
        "{}",
        process.text()
    );
    assert!(!process.text().contains(&through), "{}", process.text());

    assert_eq!(sniffer.strange(), Vec::<String>::new());
    assert!(sniffer.tunnelled() > 0);
    let sprung: Vec<_> = ["nscd", "resolved", "avahi", "bus"]
        .iter()
        .filter(|name| asked.join(name).exists())
        .collect();
    assert!(sprung.is_empty(), "{sprung:?} were asked");
}

/// Listens where resolvers do, and notes in a folder which of them was asked.
const TRAPS: &str = r#"
my %at = (nscd => "nscd/socket", resolved => "systemd/resolve/io.systemd.Resolve", avahi => "avahi-daemon/socket", bus => "dbus/system_bus_socket");
my $select = IO::Select->new; my %name;
for (keys %at) { my $s = IO::Socket::UNIX->new(Local => "/run/$at{$_}", Listen => 5) or die "$_: $!"; chmod 0777, "/run/$at{$_}"; $select->add($s); $name{$s} = $_ }
$| = 1; print "listening\n";
while (my @ready = $select->can_read) { for (@ready) {
    my $c = $_->accept; my $asked = "";
    # whoever starts the command may ask for users: of the name service cache, questions for hosts count (nscd-client.h)
    if ($name{$_} eq "nscd") { sysread($c, $asked, 8); my (undef, $type) = unpack("ll", $asked); next unless grep { $_ == $type } 4, 5, 6, 7, 13, 14 }
    open(my $f, ">", "$ARGV[0]/$name{$_}"); close $f } }
"#;
