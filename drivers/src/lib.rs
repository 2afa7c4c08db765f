//! The real implementations of Ringfence's ports.
//!
//! On the controller: [`agent_client`] is the client of agents, [`zbs`] of MDS agents, [`ceph`] of Ceph clusters;
//! [`journal`] is SQLite, [`leadership`] a lock and a counter, [`tls`] verifies certificates.
//! On a host: [`node`] prepares the host and runs vhost targets and QEMU.
//! On both: [`domain_xml`] and [`qemu_disks`] find the disks of a VM.
//! Invariants: every call has limits on time and size; a reply is checked before its use; secrets are `secrecy` types
//! and are exposed only at the last hop.

pub mod agent_client;
pub mod ceph;
pub mod domain_xml;
pub mod files;
pub mod journal;
pub mod leadership;
pub mod node;
pub mod qemu_disks;
mod secrets;
pub mod state_dir;
mod strict_json;
pub mod tls;
pub mod trace_context;
pub mod zbs;
