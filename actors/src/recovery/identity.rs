//! Which machine each host is (K1).
//!
//! Invariant: what answers as a host is that host only if it is the machine that it was before; another one is no answer.
//! A machine that was replaced is taken when an operator puts the host back into service from maintenance.
//! Rejected: believing the host's uuid alone, which a clone has too.

use std::collections::BTreeMap;

use ringfence_messages::{
    HostId,
    evidence::Machine,
    host::{HostIdentified, PingHostReply},
};

use crate::sabotage::{self, Sabotage};

/// The machines of all hosts, as they last answered.
#[derive(Debug, Default)]
pub(super) struct Identities {
    known: BTreeMap<HostId, Machine>,
}

impl Identities {
    /// As the journal left them.
    pub(super) fn remembered(events: impl IntoIterator<Item = HostIdentified>) -> Identities {
        Identities { known: events.into_iter().map(|event| (event.host_uuid, event.machine)).collect() }
    }

    /// What a ping says once it is compared with the machine that is known; and what is new about it.
    pub(super) fn judge(
        &mut self,
        host: HostId,
        name: &str,
        mut reply: PingHostReply,
    ) -> (PingHostReply, Option<HostIdentified>) {
        let is = reply.machine.clone();
        if !reply.connected || is.machine_id.is_empty() {
            return (reply, None);
        }
        let known = self.known.get(&host).filter(|known| !known.machine_id.is_empty());
        if let Some(known) = known.filter(|known| !known.is(&is) && !sabotage::on(Sabotage::OtherMachineCounts)) {
            let reason = format!(
                "another machine answers as {name}: its machine-id is {:.40}, it was {:.40}. If it was replaced: \
                 `ringfence host maintain {name}`, then `ringfence host activate {name}`",
                is.machine_id, known.machine_id
            );
            reply = PingHostReply {
                connected: false,
                reason: Some(reason),
                boot_id: String::new(),
                machine: Machine::default(),
            };
            return (reply, None);
        }
        if known == Some(&is) {
            return (reply, None);
        }
        self.known.insert(host, is.clone());
        (reply, Some(HostIdentified { host_uuid: host, host: name.to_owned(), machine: is }))
    }

    /// A host is put back into service: whatever machine answers next is it.
    pub(super) fn forget(&mut self, host: HostId) {
        self.known.remove(&host);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_no_answer_until_an_operator_says_that_it_was_replaced() {
        let host = HostId::from_name("a");
        let pinged = |machine: &str, boot: &str| PingHostReply {
            connected: true,
            reason: None,
            boot_id: "agent".to_owned(),
            machine: Machine { machine_id: machine.to_owned(), boot_id: boot.to_owned() },
        };
        let mut of = Identities::default();
        assert!(of.judge(host, "a", pinged("m1", "b1")).1.is_some(), "the first machine is news");
        assert!(of.judge(host, "a", pinged("m1", "b1")).1.is_none(), "the same is none");
        let (reply, news) = of.judge(host, "a", pinged("m1", "b2"));
        assert!(reply.connected && news.is_some(), "another boot is news, and the same machine");
        let (reply, news) = of.judge(host, "a", pinged("m2", "b1"));
        assert!(!reply.connected && news.is_none() && reply.reason.unwrap().contains("m2"));
        of.forget(host);
        assert!(of.judge(host, "a", pinged("m2", "b1")).0.connected);
    }
}
