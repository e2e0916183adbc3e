//! `adit doctor` against real servers, real firewalls and real losses: what it finds, and that it harms nobody.

mod client;
mod found;
mod left;
mod running;
mod server;
