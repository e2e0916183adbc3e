//! What happens in a world: a link, flows, and for how long.

use std::{fmt, time::Duration};

use super::{packet::Side, tcp::ControlKind};
use crate::link::Link;

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct Scenario {
    /// The bottleneck.
    pub link: Link,
    /// Of all randomness.
    pub seed: u64,
    /// How long it lasts.
    pub duration: Duration,
    /// How long at the beginning nothing is measured.
    pub warm_up: Duration,
    /// The longest packet of flows through the tunnel; those beside it have 1,500 bytes.
    pub mtu: u16,
    /// TCP through the tunnel leaves segmentation to it.
    pub super_packets: bool,
    /// The flows.
    pub flows: Vec<FlowSpec>,
}

/// One flow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlowSpec {
    /// What it does.
    pub traffic: Traffic,
    /// Where it goes.
    pub via: Via,
    /// When it begins.
    pub start: Duration,
}

/// What a flow does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Traffic {
    /// One TCP connection on which the server sends.
    Download {
        /// The congestion control of both ends.
        control: ControlKind,
        /// How many bytes; without end if none.
        bytes: Option<u64>,
    },
    /// One TCP connection on which the client sends.
    Upload {
        /// The congestion control of both ends.
        control: ControlKind,
        /// How many bytes; without end if none.
        bytes: Option<u64>,
    },
    /// A client that sends 200 bytes each 20 ms on a TCP connection and has them echoed.
    TcpMessages,
    /// The same with UDP datagrams.
    UdpMessages,
    /// UDP datagrams at a constant rate.
    Constant {
        /// Who sends.
        from: Side,
        /// Bits a second, headers of IP and UDP included.
        rate: u64,
        /// Payload bytes of each.
        size: usize,
    },
    /// The same in bursts whose lengths, and the pauses between them, are exponential.
    OnOff {
        /// Who sends.
        from: Side,
        /// Bits a second during a burst.
        rate: u64,
        /// Payload bytes of each.
        size: usize,
        /// The mean length of a burst.
        on: Duration,
        /// The mean length of a pause.
        off: Duration,
    },
}

/// Where a flow goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// Through the tunnel.
    Tunnel,
    /// Over the same bottleneck, outside of it.
    Beside,
}

impl Scenario {
    /// A scenario with no flows, of 20 s after 2 s of warming up, for packets of 1,500 bytes.
    pub fn new(link: Link, seed: u64) -> Self {
        Self {
            link,
            seed,
            duration: Duration::from_secs(22),
            warm_up: Duration::from_secs(2),
            mtu: 1500,
            super_packets: false,
            flows: Vec::new(),
        }
    }

    /// Adds a flow through the tunnel from the beginning.
    #[must_use]
    pub fn with(mut self, traffic: Traffic) -> Self {
        self.flows.push(FlowSpec {
            traffic,
            via: Via::Tunnel,
            start: Duration::ZERO,
        });
        self
    }

    /// Adds a flow beside the tunnel from the beginning.
    #[must_use]
    pub fn beside(mut self, traffic: Traffic) -> Self {
        self.flows.push(FlowSpec {
            traffic,
            via: Via::Beside,
            start: Duration::ZERO,
        });
        self
    }

    /// Ends the run after `duration`.
    #[must_use]
    pub fn lasting(mut self, duration: Duration) -> Self {
        self.duration = duration;
        self
    }
}

impl Traffic {
    /// An endless download.
    pub fn download(control: ControlKind) -> Self {
        Self::Download {
            control,
            bytes: None,
        }
    }

    /// An endless upload.
    pub fn upload(control: ControlKind) -> Self {
        Self::Upload {
            control,
            bytes: None,
        }
    }

    /// The side from which most of its bytes come.
    pub fn from(&self) -> Side {
        match self {
            Self::Download { .. } => Side::Server,
            Self::Upload { .. } | Self::TcpMessages | Self::UdpMessages => Side::Client,
            Self::Constant { from, .. } | Self::OnOff { from, .. } => *from,
        }
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Download { control, .. } => write!(f, "download {control}"),
            Self::Upload { control, .. } => write!(f, "upload {control}"),
            Self::TcpMessages => f.write_str("messages tcp"),
            Self::UdpMessages => f.write_str("messages udp"),
            Self::Constant { rate, .. } => write!(f, "constant {} kbit/s", rate / 1000),
            Self::OnOff { rate, .. } => write!(f, "on-off {} kbit/s", rate / 1000),
        }
    }
}
