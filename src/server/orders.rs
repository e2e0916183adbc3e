//! Orders about clients and invitations, which a running server takes over its control socket.
//!
//! | command | arguments | what it does, and answers |
//! |---|---|---|
//! | `invite` | `name`, `seconds`, `addresses`: a list | makes an invitation: `link`, `name`, `ends` (seconds since 1970), `servers`, and `warnings` |
//! | `invite.list` | | a list of invitations, spent ones among them; no link can be had again |
//! | `invite.withdraw` | `name` | withdraws the open one |
//! | `clients.list` | | a list of clients, where each is known from, and how many sessions it has |
//! | `clients.revoke` | `client`: a name or a key | lets it in no more and ends its sessions |
//! | `clients.restore` | `client` | lets one in again that was revoked |
//! | `clients.rename` | `client`, `name` | gives one that has enrolled another name |

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use tracing::info;

use super::enrolment::{EnrolmentError, Listed};
use super::peers::Origin;
use super::reach::is_local;
use super::roll::{Invitation, InvitationState};
use super::shared::Shared;
use crate::config::Link;
use crate::io::clock;
use crate::io::control::Request;
use crate::proto::draw_token;

/// Carries out an order of the table above; `None` where it is none of them.
pub fn call(shared: &Shared, request: &Request) -> Option<Result<Value, String>> {
    let now = clock::unix();
    Some(match request.command.as_str() {
        "invite" => invite(shared, now, request),
        "invite.list" => Ok(invitations(shared, now)),
        "invite.withdraw" => withdraw(shared, now, request),
        "clients.list" => Ok(clients(shared)),
        "clients.revoke" => revoke(shared, now, request),
        "clients.restore" => restore(shared, now, request),
        "clients.rename" => rename(shared, now, request),
        _ => return None,
    })
}

fn invite(shared: &Shared, now: SystemTime, request: &Request) -> Result<Value, String> {
    let name = request.text("name")?;
    let lasts = Duration::from_secs(request.number("seconds")?);
    let asked = texts(request, "addresses")?;
    let reach = shared.reach();
    let servers = reach.servers(&asked).map_err(|error| error.to_string())?;
    // Whole seconds, as the link and the file have them.
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(now));
    let link = Link {
        server_key: reach.key,
        pin: reach.pin_for(&servers),
        servers,
        ends: now + lasts,
        token: draw_token(&mut rand::rng()),
    };
    let text = link.text().map_err(|error| error.to_string())?;
    let replaced = (shared.enrolment)
        .invite(now, name, lasts, &link.token)
        .map_err(in_words)?;
    info!(name, ends = seconds(link.ends), "somebody is invited");
    let mut warnings = Vec::new();
    if replaced {
        warnings.push(format!(
            "the former link for {name} is good for nothing any more"
        ));
    }
    if is_local(&link.servers) {
        warnings.push(
            "the link leads to this host alone: --address names one that others reach".to_owned(),
        );
    }
    let servers: Vec<String> = link.servers.iter().map(ToString::to_string).collect();
    Ok(json!({
        "name": name,
        "link": *text,
        "ends": seconds(link.ends),
        "servers": servers,
        "warnings": warnings,
    }))
}

fn invitations(shared: &Shared, now: SystemTime) -> Value {
    let state = |it: &Invitation| match it.state {
        InvitationState::Open if it.is_open(now) => "open",
        InvitationState::Open => "ended",
        InvitationState::Used { .. } => "used",
        InvitationState::Withdrawn => "withdrawn",
    };
    let listed = |it: &Invitation| {
        json!({
            "name": it.name,
            "state": state(it),
            "made": seconds(it.made),
            "ends": seconds(it.ends),
            "used_by": match it.state {
                InvitationState::Used { by } => Some(by.to_string()),
                InvitationState::Open | InvitationState::Withdrawn => None,
            },
        })
    };
    shared.enrolment.invitations().iter().map(listed).collect()
}

fn withdraw(shared: &Shared, now: SystemTime, request: &Request) -> Result<Value, String> {
    let name = request.text("name")?;
    shared.enrolment.withdraw(now, name).map_err(in_words)?;
    info!(name, "an invitation is withdrawn");
    Ok(json!({ "name": name }))
}

fn clients(shared: &Shared) -> Value {
    let listed = |it: &Listed| described(shared, it);
    shared.enrolment.list().iter().map(listed).collect()
}

fn revoke(shared: &Shared, now: SystemTime, request: &Request) -> Result<Value, String> {
    let whom = request.text("client")?;
    let revoked = shared.enrolment.revoke(now, whom).map_err(in_words)?;
    // From here on no new session of it is entered.
    let key = &revoked.client.key;
    let ended = shared.shut_out(key);
    info!(client = revoked.client.name, ended, "a client is revoked");
    let mut value = described(shared, &revoked.client);
    if let Some(map) = value.as_object_mut() {
        map.insert("ended".to_owned(), json!(ended));
        map.insert("news".to_owned(), json!(revoked.news));
    }
    Ok(value)
}

fn restore(shared: &Shared, now: SystemTime, request: &Request) -> Result<Value, String> {
    let client = (shared.enrolment).restore(now, request.text("client")?);
    let client = client.map_err(in_words)?;
    info!(client = client.name, "a client is let in again");
    Ok(described(shared, &client))
}

fn rename(shared: &Shared, now: SystemTime, request: &Request) -> Result<Value, String> {
    let (whom, name) = (request.text("client")?, request.text("name")?);
    let client = shared.enrolment.rename(now, whom, name).map_err(in_words)?;
    info!(former = whom, client = client.name, "a client is renamed");
    Ok(described(shared, &client))
}

fn described(shared: &Shared, client: &Listed) -> Value {
    let from = match client.origin {
        Origin::File => "configuration",
        Origin::Enrolled => "invitation",
    };
    json!({
        "name": client.name,
        "public_key": client.key.to_string(),
        "from": from,
        "since": client.since.map(seconds),
        "revoked": client.denied,
        "sessions": shared.registry.sessions_of(&client.key),
    })
}

fn texts(request: &Request, name: &str) -> Result<Vec<String>, String> {
    let Some(value) = request.arguments.get(name) else {
        return Ok(Vec::new());
    };
    let wrong = || format!("{}: `{name}` is a list of texts", request.command);
    let list = value.as_array().ok_or_else(wrong)?;
    let text = |it: &Value| it.as_str().map(str::to_owned).ok_or_else(wrong);
    list.iter().map(text).collect()
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn in_words(error: EnrolmentError) -> String {
    error.to_string()
}
