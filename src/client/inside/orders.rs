//! Does what the tunnel's commands ask.

use std::time::Instant;

use super::Inside;
use crate::client::associate::Application;
use crate::client::tunnel::Command;
use crate::io::outside::Outside;

impl Inside {
    /// Does what `command` asks; what an association sends beside the tunnel leaves as `outside` says.
    pub(in crate::client) fn obey(&mut self, now: Instant, outside: &Outside, command: Command) {
        match command {
            // The driver answers it, who knows more.
            Command::Look { .. } => {}
            Command::Connect {
                flow,
                remote,
                reply,
            } => self.connect(now, flow, remote, reply),
            Command::Attach {
                flow,
                attachment,
                early,
                judged,
            } => self.attach(now, flow, attachment, early, judged),
            Command::Abort { flow } => self.abort(now, flow),
            Command::BindUdp {
                port,
                number,
                inbound,
                reply,
            } => self.bind_udp(port, number, inbound, reply),
            Command::BindEcho {
                port,
                inbound,
                reply,
            } => self.bind_echo(port, inbound, reply),
            Command::SendUdp {
                port,
                remote,
                payload,
            } => self.send_udp(now, port, remote, payload),
            Command::UnbindUdp { port } => self.unbind_udp(port),
            Command::Listen {
                listener,
                port,
                arrivals,
                reply,
            } => self.listen(listener, port, arrivals, reply),
            Command::Unlisten { listener } => self.unlisten(listener),
            Command::Refuse { flow, refusal } => self.refuse(now, flow, refusal),
            Command::Idle { reply } => self.tell_when_idle(reply),
            Command::Associate {
                association,
                socket,
                client,
                rules,
                alive,
                reply,
            } => {
                let (associations, stack) = self.associations();
                let application = Application {
                    socket,
                    client,
                    rules,
                    alive,
                    outside: outside.clone(),
                };
                reply.send(associations.insert(stack, association, application));
            }
            Command::JudgeAgain => self.end_unfit(now),
            Command::Dissociate { association } => {
                let (associations, stack) = self.associations();
                associations.remove(stack, association);
            }
            Command::Resolved { query, found } => {
                let (associations, _) = self.associations();
                associations.resolved(now, query, found);
            }
        }
    }
}
