//! Decoding of any bytes returns the message or an error with its reason. It never panics and never allocates more than
//! its limit.
#![allow(missing_docs)]

use proptest::prelude::*;
use ringfence_messages::{Code, ErrorCode, MAX_CAUSES, codec, host::*, message, storage::*, vm::*};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Bytes(Vec<u8>);
message!(Bytes, 3 => ());

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Other(u8);
message!(Other, 1 => ());

#[test]
fn decode_rejects_other_message_other_version_and_damage() {
    let bytes = codec::encode(&Bytes(vec![1, 2, 3])).unwrap();
    assert_eq!(codec::decode::<Bytes>(&bytes).unwrap(), Bytes(vec![1, 2, 3]));
    let error = codec::decode::<Other>(&bytes).unwrap_err();
    assert_eq!(error.code, Code::UNKNOWN_MESSAGE);
    assert!(error.details.contains("Bytes version 3 is unknown: expected Other version 1"), "{error}");
    for (damaged, reason) in [
        (&b""[..], "0 bytes are too few"),
        (b"XY\x01", "not with \"RF\""),
        (b"RF\x09", "envelope format is unknown"),
        (b"RF\x01", "cannot decode"),
    ] {
        let error = codec::decode::<Bytes>(damaged).unwrap_err();
        assert!(error.is(&Code::INVALID_ARGUMENT) && error.details.contains(reason), "{damaged:?}: {error}");
    }
}

#[test]
fn size_limit_holds_for_encoding_and_decoding() {
    let fits = codec::MAX_BYTES as usize - 64;
    codec::decode::<Bytes>(&codec::encode(&Bytes(vec![7; fits])).unwrap()).unwrap();
    assert!(codec::encode(&Bytes(vec![7; fits + 64])).is_err());
    // A length that claims 2^60 elements: rejected before anything is allocated.
    let mut hostile = (1u64 << 60).to_le_bytes().to_vec();
    hostile.extend([0; 16]);
    assert!(codec::from_bytes::<Bytes>(&hostile).is_err());
}

/// Found by fuzzing: 1 MiB holds 30,000 errors inside each other, more than a stack does.
#[test]
fn error_nesting_is_limited() {
    let nested = |depth: usize| {
        let mut error = ErrorCode::new(Code::OPERATION, "");
        for _ in 0..depth {
            error = ErrorCode::new(Code::OPERATION, "").caused_by(error);
        }
        codec::to_bytes(&error).unwrap()
    };
    codec::from_bytes::<ErrorCode>(&nested(MAX_CAUSES)).unwrap();
    for depth in [MAX_CAUSES + 1, 1000] {
        let error = codec::from_bytes::<ErrorCode>(&nested(depth)).unwrap_err();
        assert!(error.details.contains("more than 32 causes"), "{error}");
    }
    // Once refused, the next one is read as ever.
    codec::from_bytes::<ErrorCode>(&nested(MAX_CAUSES)).unwrap();
}

proptest! {
    #[test]
    fn junk_is_an_error(junk in prop::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
        let mut bytes = if magic { b"RF\x01".to_vec() } else { Vec::new() };
        bytes.extend(&junk);
        let _ = codec::open(&bytes);
        let _ = codec::decode::<StartVmCmd>(&bytes);
        let _ = codec::from_bytes::<HostsReply>(&junk);
        let _ = codec::from_bytes::<DeployClientReply>(&junk);
        let _ = codec::from_bytes::<ringfence_messages::ErrorCode>(&junk);
    }

    #[test]
    fn flipped_bit_gives_another_message_or_an_error(at in 0usize..200, bit in 0u8..8) {
        let mut bytes = codec::encode(&PingHostMsg { timeout_ms: 2000 }).unwrap();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        if let Ok(message) = codec::decode::<PingHostMsg>(&bytes) {
            prop_assert_ne!(message.timeout_ms, 2000, "a flipped bit was not noticed");
        }
    }

    #[test]
    fn install_path_round_trips(
        pool in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", volume in "[A-Za-z0-9_][A-Za-z0-9._-]{0,20}",
        snap in prop::option::of("[a-z0-9]{1,8}"), kind in 0..5,
    ) {
        let snap = snap.map(|s| format!("@{s}")).unwrap_or_default();
        let text = match kind {
            0 => format!("ceph://{pool}/{volume}"),
            1 => format!("zbs://{pool}/{volume}{snap}"),
            2 => format!("cbd:{pool}/{pool}/{volume}{snap}"),
            3 => format!("vhost://{volume}"),
            _ => format!("dir://{volume}"),
        };
        prop_assert_eq!(text.parse::<InstallPath>().unwrap().to_string(), text);
    }

    #[test]
    fn install_path_stays_in_its_directory(text in "(ceph|zbs|vhost|dir)://.{0,40}") {
        if let Ok(path) = text.parse::<InstallPath>() {
            let written = path.to_string();
            let name = written.split_once("://").unwrap().1;
            prop_assert!(!name.contains("..") || name.split('/').all(|part| !part.starts_with('.')), "{}", written);
            prop_assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._-/@".contains(c)), "{}", written);
        }
    }
}

#[test]
fn malformed_install_paths_are_rejected_with_the_form() {
    for (text, says) in [
        ("", "is not of the form"),
        ("rbd/vm1", "is not of the form"),
        ("ceph://rbd", "ceph://POOL/IMAGE"),
        ("ceph://rbd/vm1/x", "ceph://POOL/IMAGE"),
        ("ceph:///vm1", "the name of its pool"),
        ("ceph://rbd/vm 1", "the name of its image"),
        ("zbs://p/v@", "the name of its snapshot"),
        ("cbd:a/b", "cbd:PHYSICAL/LOGICAL/VOLUME"),
        ("vhost://../etc", "the name of its volume"),
        ("vhost://.hidden", "the name of its volume"),
        ("dir://-rf", "the name of its file"),
        ("vhost://$(reboot)", "the name of its volume"),
    ] {
        let error = text.parse::<InstallPath>().unwrap_err().to_string();
        assert!(error.contains(says), "{text:?}: {error}");
    }
    assert!(format!("vhost://{}", "v".repeat(MAX_NAME_BYTES + 1)).parse::<InstallPath>().is_err());
}

#[test]
fn storage_status_is_the_best_of_its_protocols() {
    use ringfence_messages::ProtocolStatus::{Connected, Disconnected};
    for (statuses, expected) in [
        (vec![], None),
        (vec![Disconnected, Disconnected], Some(Disconnected)),
        (vec![Disconnected, Connected], Some(Connected)),
        (vec![Connected, Disconnected], Some(Connected)),
    ] {
        assert_eq!(aggregate(statuses.clone()), expected, "{statuses:?}");
    }
}

#[test]
fn ids_from_names_are_stable_and_differ_by_kind() {
    use ringfence_messages::{HostId, VmId};
    insta::assert_snapshot!(HostId::from_name("host-a"), @"6d0bdce1-544c-5490-a692-2357257bba79");
    assert_ne!(HostId::from_name("x").0, VmId::from_name("x").0);
    let error = "not-a-uuid".parse::<VmId>().unwrap_err().to_string();
    assert!(error.contains("is not the uuid of a vm"), "{error}");
}
