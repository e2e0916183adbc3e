//! How much a datagram lane spends on repairing losses.

use super::error::Place;
use super::parse;
use super::settings::{Located, Settings, nearest};

/// What is sent beside the packets so that losses can be repaired; on datagram lanes only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// As much as the losses that are measured call for; nothing on a link that loses nothing.
    #[default]
    Auto,
    /// Nothing, and nothing is sent again.
    Off,
    /// Always the same.
    Fixed(FixedRepair),
}

/// What is always spent on repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedRepair {
    /// Repair packets for a hundred source packets, 1 to 100.
    pub overhead_percent: u8,
}

impl Repair {
    /// The same, as the redundancy controller knows it.
    #[must_use]
    pub const fn mode(self) -> adit_fec::Mode {
        match self {
            Self::Auto => adit_fec::Mode::Auto,
            Self::Off => adit_fec::Mode::Off,
            Self::Fixed(FixedRepair { overhead_percent }) => adit_fec::Mode::Fixed {
                repairs: overhead_percent as u16,
                sources: 100,
                span: FIXED_SPAN,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Auto,
    Off,
    Fixed {
        /// In percent, where the word itself says it.
        overhead: Option<u8>,
    },
}

/// Reads `repair: auto | off | fixed | fixed:20%` or `repair: {mode: fixed, overhead: 20%}`. What YAML calls a boolean is
/// auto or off.
pub(super) fn read(settings: &mut Settings<'_>) -> Repair {
    let mode = settings.choice("repair", "mode", mode);
    let overhead = settings.detail("repair", "overhead", percentage);
    let wrong = settings.has_problem("repair") || settings.has_problem("repair.mode");
    let (mode, chosen) = mode.map(|at| (at.value, at.place)).unzip();
    match (mode, overhead) {
        // One that is said with the mode is for wherever the mode is.
        (Some(Mode::Fixed { overhead: said }), overhead) => Repair::Fixed(FixedRepair {
            overhead_percent: said
                .or(overhead.map(|at| at.value))
                .unwrap_or(DEFAULT_OVERHEAD),
        }),
        (mode @ (Some(Mode::Auto | Mode::Off) | None), overhead) => {
            // A mode that was given outside of the file is for this run, whatever the file's is like.
            let overridden = |at: &Located<u8>| {
                let from_file = |place: &Place| matches!(place, Place::File(_));
                from_file(&at.place) && chosen.as_ref().is_some_and(|place| !from_file(place))
            };
            if let Some(at) = overhead.filter(|at| !wrong && !overridden(at)) {
                let message = format!(
                    "is used only with `mode: fixed`: write {{mode: fixed, overhead: {}%}}",
                    at.value
                );
                settings.problem_at(&at, message);
            }
            match mode {
                Some(Mode::Off) => Repair::Off,
                Some(Mode::Auto | Mode::Fixed { .. }) | None => Repair::Auto,
            }
        }
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" | "on" | "true" | "yes" => Ok(Mode::Auto),
        "off" | "false" | "no" => Ok(Mode::Off),
        "fixed" => Ok(Mode::Fixed { overhead: None }),
        word if word.starts_with("fixed:") => {
            let overhead = percentage(word["fixed:".len()..].trim_start())?;
            Ok(Mode::Fixed {
                overhead: Some(overhead),
            })
        }
        word if word.ends_with('%') => Err(match percentage(word) {
            Ok(overhead) => format!("`{text}` is an overhead: write fixed:{overhead}%"),
            Err(wrong) => wrong,
        }),
        word => Err(match nearest(word, ["auto", "off", "fixed"].into_iter()) {
            Some(near) => format!("`{text}` is no way to repair: did you mean {near}?"),
            None => format!("`{text}` is no way to repair: write auto, off, fixed or fixed:20%"),
        }),
    }
}

fn percentage(text: &str) -> Result<u8, String> {
    parse::percentage(text, LEAST_OVERHEAD, MOST_OVERHEAD)
}

/// Packets that each repair covers where nothing is measured: 25 ms at 50 Mbit/s, enough for bursts.
const FIXED_SPAN: u16 = 100;
/// One repair packet for five: what covers 5 % of loss on a link without bursts.
const DEFAULT_OVERHEAD: u8 = 20;
const LEAST_OVERHEAD: u8 = 1;
/// As many repair packets as packets; more is better spent on sending less.
const MOST_OVERHEAD: u8 = 100;
