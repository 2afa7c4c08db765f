//! Messages as they come from another node.
//!
//! Properties: an envelope that opens is the very bytes that encoding it gives, and so is the message in it; a reply
//! says the same when it is encoded again; no error nests so deep that a stack is too small for it.

use ringfence_messages::{
    ErrorCode, MAX_CAUSES, Message, ceph::*, codec, fence::*, ha::*, host::*, inventory::*, storage::*, vhost::*,
    vm::*, zbs::*,
};
use serde::{Serialize, de::DeserializeOwned};

/// What was decoded is encoded in one way, which says the same. Not always in the bytes that came: a map's keys may
/// come in another order, or twice.
fn same<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    if let Ok(value) = codec::from_bytes::<T>(bytes) {
        let encoded = codec::to_bytes(&value).expect("what was decoded can be encoded");
        assert!(encoded.len() <= bytes.len(), "something was decoded that did not come");
        let again = codec::from_bytes::<T>(&encoded).expect("what was encoded can be decoded");
        assert_eq!(codec::to_bytes(&again).expect("and encoded"), encoded, "encode∘decode is not id");
    }
}

fn message<M: Message>(whole: &[u8], name: &str) -> bool {
    if name != M::NAME {
        return false;
    }
    if let Ok(message) = codec::decode::<M>(whole) {
        assert_eq!(codec::encode(&message).expect("what was decoded can be encoded"), whole, "{name}");
    }
    true
}

macro_rules! known {
    ($($message:ident)*) => {
        /// Of the message of this name; false if there is none.
        fn by_name(whole: &[u8], name: &str) -> bool {
            false $(|| message::<$message>(whole, name))*
        }

        /// Every kind of reply, by number.
        const REPLIES: &[fn(&[u8])] = &[$(same::<<$message as Message>::Reply>),*];
    };
}

known! {
    SiblingFenceVmOnHostMsg SiblingFenceVmCmd HaStartVmInstanceMsg HostPingCmd HostFactsCmd PingHostMsg
    ChangeHostStateMsg QueryServingHostsMsg PlanHaStartMsg ScanHostMsg ScanHostCmd FindTargetMsg QuarantineHostMsg
    ConfirmHostFencedMsg
    SetQuarantineMsg QueryHaMsg QueryWatchersMsg FenceHostOnStorageMsg LiftStorageFenceMsg ForgetStorageFenceMsg
    QueryStorageFencesMsg LookForVmMsg
    QueryHostsMsg CheckHostHealthMsg DeployClientMsg ActivateVolumeMsg PrepareVhostTargetEnvCmd DeployVhostCmd
    VhostTargetHealthCmd CreateVhostBdevCmd DeleteVhostBdevCmd StartVmCmd StopVmCmd ListVmsCmd StartVmMsg StopVmMsg
    QueryVmMsg
    DeployClientCmd UpdateHostDependencyCmd VhostHostCmd CreateVhostBdevOnHostCmd CheckHostConnectionCmd MdsFactsCmd
    PlanDrainMsg VacateVmMsg QueryCandidatesMsg QueryCensusMsg RetireMsg ForgetHostMsg DeactivateVolumeMsg
    DeleteVhostBdevOnHostCmd
}

/// An envelope; or, behind another first byte than its magic, a reply of the kind of that number.
pub(crate) fn wire(bytes: &[u8]) {
    match codec::open(bytes) {
        Ok(envelope) => {
            let body = codec::to_bytes(&envelope).expect("what was opened can be closed");
            assert_eq!(body, bytes[3..], "an envelope is read two ways");
            by_name(bytes, &envelope.name);
        }
        Err(error) => assert!(!error.details.is_empty()),
    }
    let Some((kind, rest)) = super::chosen(bytes) else { return };
    match REPLIES.get(kind) {
        Some(reply) => reply(rest),
        None => {
            same::<Result<Vec<VmInventory>, ErrorCode>>(rest);
            if let Ok(Err(error)) = codec::from_bytes::<Result<Vec<VmInventory>, ErrorCode>>(rest) {
                let causes = std::iter::successors(error.cause.as_deref(), |error| error.cause.as_deref()).count();
                assert!(causes <= MAX_CAUSES, "{causes} causes beneath each other");
            }
        }
    }
}
