//! Which machine each host is (K1).
//!
//! Invariant: an answer counts only if it comes from the machine that the host was before. A replaced machine is
//! accepted when an operator returns the host to service from maintenance.
//! Alternatives considered: trust the host's uuid alone, which a clone has too.

use std::collections::BTreeMap;

use ringfence_messages::{
    HostId,
    evidence::Machine,
    host::{HostIdentified, PingHostReply},
};

use crate::sabotage::{self, Sabotage};

/// The machines of all hosts at their last answers.
#[derive(Debug, Default)]
pub(super) struct Identities {
    known: BTreeMap<HostId, Machine>,
}

impl Identities {
    /// The machines as replayed from the journal.
    pub(super) fn replayed(events: impl IntoIterator<Item = HostIdentified>) -> Identities {
        Identities { known: events.into_iter().map(|event| (event.host_uuid, event.machine)).collect() }
    }

    /// Compares the machine of a ping with the known one. Returns the event to record if it is new.
    pub(super) fn judge(
        &mut self,
        host: HostId,
        name: &str,
        mut reply: PingHostReply,
    ) -> (PingHostReply, Option<HostIdentified>) {
        let machine = reply.machine.clone();
        if !reply.connected || machine.machine_id.is_empty() {
            return (reply, None);
        }
        let known = self.known.get(&host).filter(|known| !known.machine_id.is_empty());
        if let Some(known) = known.filter(|known| !known.is(&machine) && !sabotage::on(Sabotage::OtherMachineCounts)) {
            let reason = format!(
                "another machine answers as {name}: its machine-id is {:.40}, expected {:.40}; if the machine was \
                 replaced, run `ringfence host maintain {name}`, then `ringfence host activate {name}`",
                machine.machine_id, known.machine_id
            );
            reply = PingHostReply {
                connected: false,
                reason: Some(reason),
                boot_id: String::new(),
                machine: Machine::default(),
            };
            return (reply, None);
        }
        if known == Some(&machine) {
            return (reply, None);
        }
        self.known.insert(host, machine.clone());
        (reply, Some(HostIdentified { host_uuid: host, host: name.to_owned(), machine }))
    }

    /// A host returns to service: the next machine that answers is accepted.
    pub(super) fn forget(&mut self, host: HostId) {
        self.known.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machine_counts_only_after_activation() {
        let host = HostId::from_name("a");
        let pinged = |machine: &str, boot: &str| PingHostReply {
            connected: true,
            reason: None,
            boot_id: "agent".to_owned(),
            machine: Machine { machine_id: machine.to_owned(), boot_id: boot.to_owned() },
        };
        let mut identities = Identities::default();
        assert!(identities.judge(host, "a", pinged("m1", "b1")).1.is_some(), "the first machine is news");
        assert!(identities.judge(host, "a", pinged("m1", "b1")).1.is_none(), "the same is none");
        let (reply, news) = identities.judge(host, "a", pinged("m1", "b2"));
        assert!(reply.connected && news.is_some(), "another boot is news, and the same machine");
        let (reply, news) = identities.judge(host, "a", pinged("m2", "b1"));
        assert!(!reply.connected && news.is_none() && reply.reason.unwrap().contains("m2"));
        identities.forget(host);
        assert!(identities.judge(host, "a", pinged("m2", "b1")).0.connected);
    }
}
