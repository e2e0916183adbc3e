//! `adit clients`: who may connect to a running server.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::invite::{call, moment, text};
use super::running::Which;
use super::{Failure, print};

/// The arguments of `adit clients`.
#[derive(Debug, Args)]
pub(super) struct ClientsArgs {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the clients, where each is known from, and how many sessions it has now
    List(List),
    /// Let a client in no more, and end its sessions at once
    ///
    /// From now on, over restarts, until it is restored. The server's configuration stays as it is, where it stands there.
    Revoke(Whom),
    /// Let a client in again that was revoked, with its name, and with its address if nobody has that by now
    Restore(Whom),
    /// Give a client that was invited another name
    Rename(Rename),
}

#[derive(Debug, Args)]
struct List {
    /// Print one JSON list
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Whom {
    /// Its name or its public key
    #[arg(value_name = "CLIENT")]
    client: String,
}

#[derive(Debug, Args)]
struct Rename {
    /// Its name or its public key
    #[arg(value_name = "CLIENT")]
    client: String,
    /// The new name
    #[arg(value_name = "NAME")]
    name: String,
}

/// Runs `adit clients`.
pub(super) fn run(args: &ClientsArgs) -> Result<(), Failure> {
    let mut caller = args.which.find_server()?;
    let mut order =
        |command: &str, client: &str| call(&mut caller, command, &[("client", json!(client))]);
    match &args.action {
        Action::List(list) => {
            let clients = call(&mut caller, "clients.list", &[])?;
            if list.json {
                print(&format!("{clients:#}"))
            } else {
                table(&clients)
            }
        }
        Action::Revoke(whom) => revoked(&order("clients.revoke", &whom.client)?),
        Action::Restore(whom) => {
            let client = order("clients.restore", &whom.client)?;
            print(&format!("{} may connect again", text(&client, "name")))
        }
        Action::Rename(rename) => {
            let arguments = [
                ("client", json!(rename.client)),
                ("name", json!(rename.name)),
            ];
            let client = call(&mut caller, "clients.rename", &arguments)?;
            print(&format!(
                "{} is {} now",
                rename.client,
                text(&client, "name")
            ))
        }
    }
}

fn revoked(client: &Value) -> Result<(), Failure> {
    let name = text(client, "name");
    let ended = match number(client, "ended") {
        0 => "it had no session".to_owned(),
        1 => "its session was ended".to_owned(),
        sessions => format!("its {sessions} sessions were ended"),
    };
    if client.get("news").and_then(Value::as_bool) == Some(false) {
        return print(&format!("{name} was revoked before; {ended}"));
    }
    print(&format!("{name} is revoked; {ended}"))?;
    if text(client, "from") == "invitation" {
        return print(&format!(
            "`adit clients restore {name}` lets it in again, with the key that it has. Its name is free: `adit invite {name}` makes a link for another device."
        ));
    }
    if text(client, "from") == "configuration" {
        print(&format!(
            "It still stands in the server's configuration, and is denied all the same: take it out there when it suits, or let it in again by `adit clients restore {name}`."
        ))?;
    }
    Ok(())
}

fn table(clients: &Value) -> Result<(), Failure> {
    let clients = clients.as_array().map(Vec::as_slice).unwrap_or_default();
    if clients.is_empty() {
        return print("no clients: `adit invite NAME` makes a link for one");
    }
    let lengths = clients.iter().map(|it| text(it, "name").len());
    let width = lengths.max().unwrap_or_default().max("NAME".len());
    print(&format!(
        "{:width$}  {:44}  {:13}  {:20}  {:>8}  STATE",
        "NAME", "PUBLIC KEY", "FROM", "SINCE", "SESSIONS"
    ))?;
    for it in clients {
        let revoked = it.get("revoked").and_then(Value::as_bool) == Some(true);
        let line = format!(
            "{:width$}  {:44}  {:13}  {:20}  {:>8}  {}",
            text(it, "name"),
            text(it, "public_key"),
            text(it, "from"),
            moment(it.get("since").and_then(Value::as_u64)),
            number(it, "sessions"),
            if revoked { "revoked" } else { "" },
        );
        print(line.trim_end())?;
    }
    Ok(())
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or_default()
}
