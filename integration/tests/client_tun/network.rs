//! A host whose network changes, is strict, or is spoken to from outside.

use std::time::Duration;

use adit_integration::{
    namespaces::{CLIENT4, CLIENT6, EGRESS4, EGRESS6, ORIGIN4, SERVER4},
    origin::Origin,
    process::Process,
    skip::can_run,
};

use crate::{FAR, NEEDS, PORT, SOON, scene::Scene, wait_for};

#[test]
fn interface_that_somebody_switches_off_is_switched_on_again() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let routes = || sorted(place.shell("for f in -4 -6; do ip $f route show table all; done"));
    let before = routes();
    place.run("ip link set adit0 down");
    wait_for("it is up, with its routes", || routes() == before);
    let seen = scene.seen(&scene.four.url("/peer"));
    assert!(seen.starts_with(&format!("{EGRESS4}:")), "{seen:?}");
    assert!(client.stop().0.success());
}

#[test]
fn tunnel_goes_on_when_an_interface_comes_back_with_another_address() {
    if !can_run(NEEDS) {
        return;
    }
    for scheme in ["udp", "tcp"] {
        let scene = Scene::new(&format!("{scheme}://{SERVER4}:{PORT}"), "");
        let place = &scene.lab.client;
        let _client = scene.client();
        let mut curl = place.command("curl");
        let url = scene.four.url("/bytes/4000000?seed=9");
        curl.args([
            "-sS",
            "--limit-rate",
            "500k",
            "-m",
            "60",
            "-w",
            "\n%{http_code} %{size_download}",
            "-o",
            "/dev/null",
            &url,
        ]);
        let mut flow = Process::spawn("curl", curl);
        wait_for("the flow stands", || {
            place.run("ss -Htn").contains(&ORIGIN4.to_string())
        });
        place.shell(&format!(
            "ip link set c0 down; ip address del {CLIENT4}/24 dev c0; ip address add 10.77.1.77/24 dev c0; ip link set c0 up
             ip route add default via {SERVER4} dev c0"
        ));
        assert!(
            flow.wait(Duration::from_secs(90))
                .is_some_and(|status| status.success()),
            "{scheme}: {}",
            flow.text()
        );
        let is_whole = |line: &str| line == "200 4000000";
        assert!(
            flow.wait_for_line(SOON, is_whole).is_some(),
            "{}",
            flow.text()
        );
        assert!(
            scene
                .seen("http://four.example/peer")
                .starts_with(&format!("{EGRESS4}:"))
        );
    }
}

#[test]
fn lanes_are_answered_through_a_strict_reverse_path_filter() {
    if !can_run(NEEDS) {
        return;
    }
    for scheme in ["udp", "tcp"] {
        // a server that is reached by the default route, as servers are
        let scene = Scene::new(&format!("{scheme}://{FAR}:{PORT}"), "");
        let place = &scene.lab.client;
        scene
            .lab
            .server
            .run(&format!("ip address add {FAR}/32 dev s0"));
        let filter = |name: &str, value: u8| {
            place.shell(&format!(
                "echo {value} > /proc/sys/net/ipv4/conf/all/{name}"
            ));
        };
        filter("rp_filter", 1);
        let mut client = scene.client();
        let through = format!("{EGRESS4}:");
        let goes = || scene.seen(&scene.four.url("/peer")).starts_with(&through);
        assert!(goes(), "{scheme}");
        // and it is that which makes it so; of an open TCP connection the kernel remembers the way
        if scheme == "udp" {
            filter("src_valid_mark", 0);
            assert!(!goes());
            filter("src_valid_mark", 1);
            wait_for("the lane is back", goes);
        }
        assert!(client.stop().0.success());
    }
}

/// Has the server host speak to a service of the client host from `from`, to which only the default route leads.
fn answered(scene: &Scene, from: &str, to: &str) -> bool {
    let ping = format!("ping -I {from} -c 1 -W 2 {to}");
    let url = match to.contains(':') {
        true => format!("http://[{to}]/peer"),
        false => format!("http://{to}/peer"),
    };
    let curl = format!("curl -sS -m 5 --interface {from} {url}");
    let is_pinged = scene.lab.server.try_run(&ping).status.success();
    let is_served = scene.lab.server.try_run(&curl).stdout.contains(from);
    assert_eq!(is_pinged, is_served, "{to}");
    is_served
}

#[test]
fn whoever_speaks_to_the_host_from_outside_is_answered_there_but_for_a_kill_switch() {
    if !can_run(NEEDS) {
        return;
    }
    const FAR6: &str = "fd12::1";
    for (more, is_answered) in [("", true), ("tun: {kill_switch: true}", false)] {
        let scene = Scene::udp(more);
        let (place, server) = (&scene.lab.client, &scene.lab.server);
        server.run(&format!("ip address add {FAR}/32 dev s0"));
        server.run(&format!("ip -6 address add {FAR6}/128 dev s0 nodad"));
        let _four = Origin::http(place, (CLIENT4, 80).into());
        let _six = Origin::http(place, (CLIENT6, 80).into());
        place.shell("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter");
        let both = |want: bool, when: &str| {
            assert_eq!(answered(&scene, FAR, &CLIENT4.to_string()), want, "{when}");
            assert_eq!(answered(&scene, FAR6, &CLIENT6.to_string()), want, "{when}");
        };
        both(true, "before");
        let mut client = scene.client();
        both(is_answered, "with the tunnel");
        // what the host begins goes through the tunnel all the same
        let (four, six) = (format!("{EGRESS4}:"), format!("[{EGRESS6}]:"));
        assert!(scene.seen(&scene.four.url("/peer")).starts_with(&four));
        assert!(scene.seen(&scene.six.url("/peer")).starts_with(&six));
        assert!(client.stop().0.success());
        both(true, "afterwards");
    }
}

#[test]
fn rules_that_somebody_takes_away_come_back() {
    if !can_run(NEEDS) {
        return;
    }
    let scene = Scene::udp("");
    let place = &scene.lab.client;
    let mut client = scene.client();
    let rules = || place.shell("ip -4 rule; ip -6 rule");
    let ours = rules();
    // as systemd-networkd does with rules that it has not made
    for family in ["-4", "-6"] {
        for priority in [6865, 6866, 6867] {
            place.run(&format!("ip {family} rule del priority {priority}"));
        }
        wait_for("the rules are back", || rules() == ours);
    }
    assert!(client.stop().0.success());
}
