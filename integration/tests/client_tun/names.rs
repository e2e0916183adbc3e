//! Who answers the host's names, and what becomes of its resolv.conf.

use adit_integration::{
    adit::path,
    dns::{Dns, Zone},
    namespaces::{EGRESS4, ORIGIN4, SERVER4},
    skip::can_run,
};

use crate::{NEEDS, PORT, scene::Scene, wait_for};

#[test]
fn name_servers_that_somebody_writes_meanwhile_are_kept_and_come_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let ours = place.run("cat /etc/resolv.conf");
    assert!(ours.contains("nameserver 10.86.0.1"), "{ours}");
    // as a DHCP client does when it has another address
    place.shell(
        "ip address add 10.77.1.78/24 dev c0; sleep 1
         echo nameserver 192.0.2.1 > /etc/resolv.conf.new; mv /etc/resolv.conf.new /etc/resolv.conf",
    );
    wait_for("the tunnel's are back", || {
        place.run("cat /etc/resolv.conf") == ours
    });
    // in place, and with nothing else that changes
    place.shell("echo nameserver 192.0.2.1 > /etc/resolv.conf");
    wait_for("the tunnel's are back again", || {
        place.run("cat /etc/resolv.conf") == ours
    });
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    assert!(client.stop().0.success());
    assert_eq!(place.run("cat /etc/resolv.conf"), "nameserver 192.0.2.1\n");
    assert!(!place.run("ls -a /etc").contains(".resolv"));
}

#[test]
fn file_of_a_container_is_written_to_and_gets_its_content_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    // what container engines do: a mount that no other file can take the name of
    place.shell("cp /etc/resolv.conf /etc/mounted; mount --bind /etc/mounted /etc/resolv.conf");
    let before = scene.host();
    let mut client = scene.client();
    assert_eq!(
        place.run("dig +short four.example").trim(),
        ORIGIN4.to_string()
    );
    client.kill();
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains("nameserver 10.86.0.1")
    );
    let cleaned = scene.adit(&["cleanup"]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert_eq!(
        place.run("cat /etc/resolv.conf"),
        place.run("cat /etc/mounted")
    );
    let kept = place.shell("find /var/lib/adit -type f ! -name lock ! -name host.instance");
    assert_eq!(kept, "", "but by which instance the next one goes on");
    // the file was written to: all but its times is as before
    let timeless = |text: &str| -> Vec<String> {
        (text
            .lines()
            .filter(|line| !line.contains("-rw-"))
            .map(str::to_owned))
        .collect()
    };
    assert_eq!(timeless(&scene.host()), timeless(&before));
}

#[test]
fn host_asks_the_local_resolver_where_there_is_one() {
    if !can_run(NEEDS) {
        return;
    }
    let more = "dns: {listen: \"127.0.0.1:53\", records: [nas.home A 192.0.2.7]}";
    let scene = Scene::udp(more);
    let place = &scene.lab.client;
    let mut client = scene.client();
    assert!(
        place
            .run("cat /etc/resolv.conf")
            .contains("nameserver 127.0.0.1")
    );
    assert_eq!(place.run("dig +short nas.home").trim(), "192.0.2.7");
    assert!(
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    );
    assert!(client.stop().0.success());
    // a file has no word for another port
    let refused = scene.adit(&[
        "client",
        "--tun",
        "-c",
        path(&scene.client_config),
        "--dns",
        "127.0.0.1:5353",
    ]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(
        refused.stderr.contains("set `dns: 127.0.0.1:53`"),
        "{refused:?}"
    );
}

#[test]
fn server_is_found_again_by_name_outside_the_tunnel() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::new(
        &format!("tcp://vpn.example:{PORT}"),
        "tun: {kill_switch: true}",
    );
    let zone = Zone::new().address("vpn.example", 0, SERVER4);
    let outside = Dns::start(&scene.lab.server, (SERVER4, 53).into(), zone);
    let _client = scene.client();
    assert!(
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    );
    let asked = outside.asked().len();
    assert!(asked > 0);
    scene.lab.server.reset(PORT);
    wait_for("the name is asked for again", || {
        outside.asked().len() > asked
    });
    scene.lab.server.mend();
    wait_for("the tunnel is back", || {
        scene
            .seen("http://four.example/peer")
            .starts_with(&format!("{EGRESS4}:"))
    });
    // and for nothing else
    let asked = outside.asked();
    assert!(
        asked.iter().all(|question| question.name == "vpn.example"),
        "{asked:?}"
    );
}
