//! `adit invite`: links that make clients, each once.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, SystemTime};

use clap::Args;
use qrcode::{Color, EcLevel, QrCode};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::running::Which;
use super::{Failure, print};
use crate::config::parse_duration;
use crate::io::control::{Caller, Request};
use crate::server::roll::{LONGEST, SHORTEST};

/// The arguments of `adit invite`.
#[derive(Debug, Args)]
#[command(
    after_help = "The link is the one line on standard output, all else is on standard error: LINK=$(adit invite laptop)\nWho has it can become a client, until it was used or has ended: hand it over as you would a password."
)]
pub(super) struct InviteArgs {
    #[command(flatten)]
    which: Which,
    /// The name that the client will have: letters, digits, and any of - _ . @
    #[arg(value_name = "NAME", required_unless_present_any = ["list", "withdraw"])]
    name: Option<String>,
    /// How long the link is good: from 1m to 30d
    #[arg(long, value_name = "DURATION", default_value = "24h")]
    expires: String,
    /// A name or address by which clients reach the server, or SCHEME://HOST:PORT; may be given several times.
    /// Without, what its configuration says by public:, or where it listens
    #[arg(long, value_name = "HOST")]
    address: Vec<String>,
    /// Show the link as a QR code, also where standard error is no terminal
    #[arg(long, overrides_with = "no_qr")]
    qr: bool,
    /// Show no QR code
    #[arg(long)]
    no_qr: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// List the links that somebody can still use; --json lists the others, too, and what has become of them
    #[arg(long, conflicts_with_all = ["name", "withdraw"])]
    list: bool,
    /// With --list: those that were used or withdrawn or have ended, too
    #[arg(long, requires = "list")]
    all: bool,
    /// Withdraw the open invitation of this name
    #[arg(long, value_name = "NAME", conflicts_with = "name")]
    withdraw: Option<String>,
}

/// Runs `adit invite`.
pub(super) fn run(args: &InviteArgs) -> Result<(), Failure> {
    let lasts = parse_duration(&args.expires, SHORTEST, LONGEST).map_err(|_| {
        let found = &args.expires;
        Failure::Usage(format!(
            "--expires: `{found}` is not a duration from 1m to 30d: write one like 30m, 24h or 7d"
        ))
    })?;
    let mut caller = args.which.find_server()?;
    if args.list {
        let answer = call(&mut caller, "invite.list", &[])?;
        return if args.json {
            print(&format!("{answer:#}"))
        } else {
            table(&answer, args.all)
        };
    }
    if let Some(name) = &args.withdraw {
        call(&mut caller, "invite.withdraw", &[("name", json!(name))])?;
        return print(&format!("the link for {name} is good for nothing any more"));
    }
    let name = args.name.as_deref().unwrap_or_default();
    let arguments = [
        ("name", json!(name)),
        ("seconds", json!(lasts.as_secs())),
        ("addresses", json!(args.address)),
    ];
    let answer = call(&mut caller, "invite", &arguments)?;
    if args.json {
        return print(&format!("{answer:#}"));
    }
    show(args, name, &answer)
}

fn show(args: &InviteArgs, name: &str, answer: &Value) -> Result<(), Failure> {
    let link = text(answer, "link");
    let servers = answer.get("servers").and_then(Value::as_array);
    let servers: Vec<&str> = (servers.into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let ends = moment(answer.get("ends").and_then(Value::as_u64));
    say(&format!(
        "Invitation for {name}, by {}; good once, until {ends} (in {}).",
        servers.join(", "),
        args.expires
    ));
    let warnings = answer.get("warnings").and_then(Value::as_array);
    for warning in warnings.into_iter().flatten().filter_map(Value::as_str) {
        say(&format!("warning: {warning}"));
    }
    let terminal = io::stderr().is_terminal();
    if args.qr || terminal && !args.no_qr {
        match QrCode::with_error_correction_level(link, EcLevel::L) {
            Ok(code) => say(&picture(&code.to_colors(), code.width(), terminal)),
            Err(error) => say(&format!("no QR code: {error}")),
        }
    }
    say("On the client: adit join LINK, with this link:");
    print(link)
}

/// Draws the modules of a code by half blocks, two rows a line, with a margin of four as the standard wants
/// (ISO/IEC 18004, section 9.1). In a terminal it is dark on light whatever the colours are there; elsewhere it is made for
/// light on dark.
fn picture(modules: &[Color], width: usize, terminal: bool) -> String {
    let dark = |x: usize, y: usize| {
        let inside = |at: usize| at.checked_sub(MARGIN).filter(|at| *at < width);
        match (inside(x), inside(y)) {
            (Some(x), Some(y)) => modules.get(y * width + x) == Some(&Color::Dark),
            _ => false,
        }
    };
    let side = width + 2 * MARGIN;
    let mut lines = Vec::new();
    for y in (0..side).step_by(2) {
        let mut line = String::new();
        for x in 0..side {
            // Below the last row there is nothing, which is light.
            let light = (!dark(x, y), !dark(x, y + 1));
            line.push(match light {
                (true, true) => '\u{2588}',
                (true, false) => '\u{2580}',
                (false, true) => '\u{2584}',
                (false, false) => ' ',
            });
        }
        lines.push(if terminal {
            // Bright white on black.
            format!("\x1b[97;40m{line}\x1b[0m")
        } else {
            line
        });
    }
    lines.join("\n")
}

fn table(list: &Value, all: bool) -> Result<(), Failure> {
    let known = list.as_array().map(Vec::as_slice).unwrap_or_default();
    let is_shown = |it: &&Value| all || text(it, "state") == "open";
    let invitations: Vec<&Value> = known.iter().filter(is_shown).collect();
    match known.len() - invitations.len() {
        0 => {}
        1 => say("one more was used or withdrawn, or has ended: --all lists it"),
        others => say(&format!(
            "{others} more were used or withdrawn, or have ended: --all lists them"
        )),
    }
    if invitations.is_empty() {
        return print("nobody is invited");
    }
    let lengths = invitations.iter().map(|it| text(it, "name").len());
    let width = lengths.max().unwrap_or_default().max("NAME".len());
    print(&format!("{:width$}  {:9}  ENDS", "NAME", "STATE"))?;
    for it in invitations {
        print(&format!(
            "{:width$}  {:9}  {}",
            text(it, "name"),
            text(it, "state"),
            moment(it.get("ends").and_then(Value::as_u64))
        ))?;
    }
    Ok(())
}

/// Orders something of the server.
pub(super) fn call(
    caller: &mut Caller,
    command: &str,
    arguments: &[(&str, Value)],
) -> Result<Value, Failure> {
    let arguments = arguments
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    let request = Request::new(command, arguments.collect::<Map<_, _>>());
    let answer = caller.call(&request, None, PATIENCE);
    answer.map_err(|error| Failure::Run(error.into()))
}

pub(super) fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Writes a time for people, to the minute.
pub(super) fn moment(seconds: Option<u64>) -> String {
    let Some(seconds) = seconds else {
        return String::new();
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    let at = OffsetDateTime::from(at);
    format!(
        "{}-{:02}-{:02} {:02}:{:02} UTC",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute()
    )
}

/// Says something beside the result.
fn say(line: &str) {
    // Nothing is left to be done for whoever closed standard error.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// How long a server may take to answer: it waits for its disk at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// Modules around a code.
const MARGIN: usize = 4;

/// The last second of the year 9999.
const LAST: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_has_the_modules_of_the_code_and_a_margin() {
        let code = QrCode::with_error_correction_level("adit://test", EcLevel::L).unwrap();
        let (width, modules) = (code.width(), code.to_colors());
        let picture = picture(&modules, width, false);
        let rows: Vec<Vec<char>> = picture.lines().map(|line| line.chars().collect()).collect();
        assert_eq!(rows.len(), (width + 2 * MARGIN).div_ceil(2));
        for y in 0..rows.len() * 2 {
            for x in 0..width + 2 * MARGIN {
                let drawn = rows[y / 2][x];
                let light = match y % 2 {
                    0 => drawn == '\u{2588}' || drawn == '\u{2580}',
                    _ => drawn == '\u{2588}' || drawn == '\u{2584}',
                };
                let inside =
                    (MARGIN..MARGIN + width).contains(&x) && (MARGIN..MARGIN + width).contains(&y);
                let dark = inside && modules[(y - MARGIN) * width + x - MARGIN] == Color::Dark;
                assert_eq!(light, !dark, "{x}, {y}");
            }
        }
    }

    #[test]
    fn moments_are_written_to_the_minute() {
        assert_eq!(moment(Some(1_763_820_059)), "2025-11-22 14:00 UTC");
        assert_eq!(moment(Some(u64::MAX)), "9999-12-31 23:59 UTC");
        assert_eq!(moment(None), "");
    }
}
