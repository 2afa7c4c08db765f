//! Who is at the other end: TLS between controller and agents, and in front of the API.
//!
//! Invariants: TLS 1.3 alone, by ring, which the SSH client brings already; no session is resumed, so that every connection
//! looks at both certificates; whose a certificate is stands in it as one URI ([`Role`]): a host's cannot order another
//! host about, and the controller takes only the certificate of the very host that it asks, wherever that host listens;
//! a file that changed is read at the next connection, and one that cannot be used leaves what is in use ([`Watched`]).
//! Rejected: the operating system's roots for agents (they would make every public CA a judge); revocation lists (short
//! lives and a new CA do it without a server that must be up).

mod client;
mod errors;
mod files;
mod identity;
mod reload;
mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub(crate) use client::{Ends, agents_client, alias};
pub use client::{api_client, plain_client};
pub use errors::{refused_client, refused_server};
pub use files::{MAX_PEM_BYTES, TlsFiles, certificates};
pub use identity::{Identity, Role, day};
pub use reload::Watched;
pub use server::{ServerFiles, ServerTls, agent_server, api_server};

/// The cryptography that everything uses.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The versions that are spoken.
const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
