//! The real ends of Ringfence's ports.
//!
//! On the controller: [`agent_client`] speaks to host agents, [`zbs`] to MDS agents, [`ceph`] to Ceph
//! clusters, [`journal`] is SQLite, [`leadership`] a lock and a counter, [`tls`] says who is at the other end.
//! On a host: [`node`] prepares it, runs vhost targets and QEMU. On both: [`domain_xml`] and [`qemu_disks`] say what a VM writes to.
//! Invariants: every call is bounded in time and size; what a peer says is checked before it is believed; secrets
//! are `secrecy` types and are shown to a peer only at the last hop.

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
