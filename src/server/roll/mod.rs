//! The roll: who was invited, who has enrolled, and who is denied, beside what the configuration says.
//!
//! ```text
//!               invite                    enrol, with its token, in time
//!  (nobody) ───────────▶ invitation: open ──────────────────────────────▶ used, by one key ──▶ client
//!                          │        │                                                           │  rename
//!                 withdraw │        │ its time is over                                   revoke  │
//!                          ▼        ▼                                                           ▼  ▲
//!                       withdrawn  ended  ── a week later: forgotten                         revoked  └─ restored
//! ```
//!
//! An invitation is known by the id that its token has in the clear, and keeps the token's hash, never the token. It is good
//! for one key: using it and entering that key as a client is one change, and so either both outlive a crash or neither
//! does. The key that used it may come again, in case it has not heard the answer. One that is spent is kept for
//! [`KEPT`], so that whoever comes late with it is told so and does not meet silence.
//!
//! A client that is revoked is one no more: its key is as any stranger's, and its name is free. What it was stays on record,
//! so that an operator can take the order back; the key of a device is no secret of the server's. With its key it may also
//! come by another invitation.
//!
//! A client of the configuration can be denied here, which outlives restarts; it is the operator's file, and not written
//! to. What is denied is a key, whatever name it has.
//!
//! The clock is the wall clock, since invitations outlive the process. A clock that jumps back prolongs them.

mod saved;
mod table;
#[cfg(test)]
mod tests;

pub use saved::RestoreError;
pub use table::{
    Admission, Enrolled, Former, Invitation, InvitationState, InviteError, KEPT, LONGEST,
    MAX_ENROLLED, MAX_INVITATIONS, MAX_REVOKED, ReadmitError, RenameError, Roll, SHORTEST,
};
