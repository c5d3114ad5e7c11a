//! TLS 1.3 with certificates on both sides.
//!
//! Certificates and keys are PEM files. Each side trusts only the authorities that it is given, not
//! the system's.

mod credentials;
mod handshakes;
mod names;
mod session;
mod sides;
#[cfg(test)]
pub(super) mod tests;

pub use credentials::{Credentials, CredentialsError};
pub(super) use handshakes::Handshakes;
pub(super) use session::{Incoming, Outgoing};
pub use sides::{ClientTls, ServerTls};
