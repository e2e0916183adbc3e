//! What endpoints miss after repair: long runs on one link, at several rates of loss.

use std::time::{Duration, Instant};

use adit_fec::Settings;
use adit_integration::{
    link::{Link, Loss},
    sim::{ControlKind, Scenario, SessionTunnel, Side, Traffic, World},
};

/// Plays at least `packets` packets of a TCP flow and as many of a UDP flow at each rate of loss, both ways, or with the
/// loss that `link` names, and prints the shares of them that never came out of the tunnel. What the queue in front of the lane dropped to slow
/// a flow down is no loss of the link's, and left out.
pub(super) fn print(packets: u64, link: Link) {
    println!(
        "{link}: {packets} packets at least for each figure; bytes on the wire for each delivered"
    );
    println!(
        "| loss | tcp: lost | for good | wire | Mbit/s | udp: lost | for good | wire | Mbit/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let percents = [0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0];
    let links = match link.down.loss {
        Loss::None => percents
            .map(|percent| (format!("{percent} %"), with_loss(link, percent)))
            .to_vec(),
        Loss::Random { .. } | Loss::Burst { .. } | Loss::Gilbert { .. } => {
            vec![("the link's".to_owned(), link)]
        }
    };
    for (loss, link) in links {
        let tcp = play(link, Traffic::download(ControlKind::Cubic), packets);
        let constant = Traffic::Constant {
            from: Side::Server,
            rate: link.down.rate / 5 * 3,
            size: 1_200,
        };
        let udp = play(link, constant, packets);
        println!("| {loss} | {tcp} | {udp} |");
    }
}

/// What became of the packets of one flow.
#[derive(Default)]
struct Tally {
    sent: u64,
    lost: u64,
    wire: f64,
    delivered: f64,
    seconds: f64,
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} | {:.1e} | {:.3} | {:.1}",
            self.lost,
            self.sent,
            self.lost as f64 / self.sent as f64,
            self.wire / self.delivered,
            self.delivered * 8e-6 / self.seconds
        )
    }
}

fn with_loss(mut link: Link, percent: f64) -> Link {
    if percent > 0.0 {
        let loss = Loss::Random { percent };
        (link.up.loss, link.down.loss) = (loss, loss);
    }
    link
}

fn play(link: Link, traffic: Traffic, packets: u64) -> Tally {
    let bits = packets as f64 * f64::from(MTU) * 8.0;
    let run = RUN.min(Duration::from_secs_f64(bits / link.down.rate as f64));
    let mut tally = Tally::default();
    let mut seed = 0;
    while tally.sent < packets {
        seed += 1;
        let epoch = Instant::now();
        let mut scenario = Scenario::new(link, seed).with(traffic).lasting(run);
        scenario.mtu = MTU;
        scenario.warm_up = Duration::ZERO;
        let tunnel = SessionTunnel::new(epoch, &scenario.link, Settings::default(), seed);
        let mut world = match World::new(epoch, scenario, tunnel) {
            Ok(world) => world,
            Err(error) => panic!("{error}"),
        };
        let report = world.run();
        let drops = world.tunnel().stats(Side::Server).queue.drops;
        let flow = &report.flows[0];
        let residual = flow.residual[Side::Server.index()];
        tally.sent += residual.sent;
        tally.lost += residual.lost.saturating_sub(drops.codel + drops.overflow);
        let delivered = flow.delivered[Side::Client.index()] as f64;
        tally.wire += report.overhead(Side::Server) * delivered;
        tally.delivered += delivered;
        tally.seconds += report.measured.as_secs_f64();
    }
    tally
}

const MTU: u16 = 1400;

/// Long enough for the beginning not to matter, short enough for several seeds; less where the packets need less.
const RUN: Duration = Duration::from_secs(100);
