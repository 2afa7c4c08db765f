//! TLS between controller and agents, and for the API.
//!
//! Invariants: only TLS 1.3, by ring, which the SSH client uses too; no session is resumed, so that every connection
//! verifies both certificates; the role of a certificate is one URI in it ([`Role`]): a host's certificate permits no
//! commands, and the controller accepts only the certificate of the addressed host, at any address; a changed file is
//! read at the next connection, and an unusable file leaves the values in use ([`Watched`]).
//! Alternatives considered: the operating system's roots for agents (every public CA would be trusted); revocation
//! lists (short lifetimes and a new CA work without a server that must be up).

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
