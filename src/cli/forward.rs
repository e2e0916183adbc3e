//! `adit forward`: adds, removes and lists the forwards of a running client.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::running::{Found, Which};
use super::{Failure, print};
use crate::config::{Forward, LocalForward, RemoteForward};
use crate::io::control::{Caller, Request};

/// The arguments of `adit forward`.
#[derive(Debug, Args)]
pub(super) struct ForwardArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add forwards; they last until they are removed or the client ends
    Add(Specs),
    /// Remove forwards: what listens is closed, open connections go on
    Rm(Rm),
    /// List the forwards there are, with what they have carried and refused
    List(List),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Specs {
    /// A port here, or unix:/path, that leads to a host beyond the server
    #[arg(
        short = 'L',
        long = "local-forward",
        value_name = "[ADDRESS:]PORT:HOST:PORT[/udp]"
    )]
    local: Vec<String>,
    /// A port of the inner address that leads to a host near the client, or to unix:/path
    #[arg(
        short = 'R',
        long = "remote-forward",
        value_name = "PORT:HOST:PORT[/udp]"
    )]
    remote: Vec<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Rm {
    /// The numbers of forwards, as the list shows them
    #[arg(value_name = "ID")]
    ids: Vec<u64>,
    /// A forward as it was added
    #[arg(
        short = 'L',
        long = "local-forward",
        value_name = "[ADDRESS:]PORT:HOST:PORT[/udp]"
    )]
    local: Vec<String>,
    /// A forward as it was added
    #[arg(
        short = 'R',
        long = "remote-forward",
        value_name = "PORT:HOST:PORT[/udp]"
    )]
    remote: Vec<String>,
}

#[derive(Debug, Args)]
struct List {
    /// Print one JSON list
    #[arg(long)]
    json: bool,
}

/// Runs `adit forward`.
pub(super) fn run(args: &ForwardArgs) -> Result<(), Failure> {
    // What is written wrong is said before anybody is asked.
    let orders = match &args.action {
        Action::Add(specs) => {
            let forwards = forwards(&specs.local, &specs.remote)?;
            let add = |forward| order("forward.add", "forward", json!(forward));
            forwards.into_iter().map(add).collect()
        }
        Action::Rm(rm) => {
            let by_id = (rm.ids.iter()).map(|id| order("forward.remove", "id", json!(id)));
            let forwards = forwards(&rm.local, &rm.remote)?;
            let remove = |forward| order("forward.remove", "forward", json!(forward));
            by_id.chain(forwards.into_iter().map(remove)).collect()
        }
        Action::List(_) => vec![Request::new("forward.list", Map::new())],
    };
    let mut caller = match args.which.find()? {
        Found::Running(caller) => caller,
        Found::Idle(_, why) => return Err(Failure::Run(anyhow::Error::msg(why))),
    };
    for request in &orders {
        let answer = call(&mut caller, request)?;
        match &args.action {
            Action::Add(_) => changed("added", &answer)?,
            Action::Rm(_) => changed("removed", &answer)?,
            Action::List(list) if list.json => print(&format!("{answer:#}"))?,
            Action::List(_) => table(&answer)?,
        }
    }
    Ok(())
}

/// Reads what was written, and writes it as the client reads it.
fn forwards(local: &[String], remote: &[String]) -> Result<Vec<String>, Failure> {
    let wrong = |flag: &str, error: String| Failure::Usage(format!("{flag}: {error}"));
    let local = (local.iter()).map(|text| {
        let forward = LocalForward::parse(text).map_err(|error| wrong("-L", error))?;
        Ok(Forward::Local(forward).to_string())
    });
    let remote = (remote.iter()).map(|text| {
        let forward = RemoteForward::parse(text).map_err(|error| wrong("-R", error))?;
        Ok(Forward::Remote(forward).to_string())
    });
    local.chain(remote).collect()
}

fn order(command: &str, name: &str, value: Value) -> Request {
    let mut arguments = Map::new();
    arguments.insert(name.to_owned(), value);
    Request::new(command, arguments)
}

fn call(caller: &mut Caller, request: &Request) -> Result<Value, Failure> {
    let answer = caller.call(request, None, PATIENCE);
    answer.map_err(|error| Failure::Run(error.into()))
}

/// Tells what became of one forward.
fn changed(how: &str, forward: &Value) -> Result<(), Failure> {
    if let Some(warning) = forward.get("warning").and_then(Value::as_str) {
        print(&format!("warning: {warning}"))?;
    }
    print(&format!(
        "{how} {}: {}",
        number(forward, "id"),
        text(forward, "forward")
    ))
}

/// Prints the list for people.
fn table(list: &Value) -> Result<(), Failure> {
    let forwards = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if forwards.is_empty() {
        return print("no forwards");
    }
    let lengths = forwards.iter().map(|it| text(it, "forward").len());
    let width = lengths.max().unwrap_or_default();
    print(&format!(
        "{:>4}  {:width$}  {:>6}  {:>8}  STATE",
        "ID", "FORWARD", "OPEN", "TOTAL"
    ))?;
    for it in forwards {
        print(&format!(
            "{:>4}  {:width$}  {:>6}  {:>8}  {}",
            number(it, "id"),
            text(it, "forward"),
            number(it, "open"),
            number(it, "total"),
            state(it)
        ))?;
        let refused = it.get("refused").and_then(Value::as_object);
        for (reason, count) in refused.into_iter().flatten() {
            print(&format!("{:>6}refused {count}: {reason}", ""))?;
        }
    }
    Ok(())
}

fn state(forward: &Value) -> String {
    match forward.get("state") {
        Some(Value::String(state)) => state.clone(),
        // {"failed": reason}
        Some(Value::Object(failed)) => {
            let reason = failed.values().next().and_then(Value::as_str);
            format!("failed: {}", reason.unwrap_or_default())
        }
        Some(_) | None => String::new(),
    }
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// How long a client may take to answer: it has nothing to wait for.
const PATIENCE: Duration = Duration::from_secs(15);
