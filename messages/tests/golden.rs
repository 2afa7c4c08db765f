//! The wire forms of every message, reply and event, frozen per version.
//!
//! A change of a snapshot is a change of the wire: raise the version of the message and say how users are affected.
#![allow(missing_docs)]

use std::collections::BTreeSet;

use ringfence_messages::{
    Event, Message, audit::*, ceph::*, codec, doctor::*, fence::*, ha::*, host::*, inventory::*, journal::*,
    recovery::*, storage::*, vhost::*, vm::*, zbs::*,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

const HOST: &str = r#"{"uuid": "11111111-1111-1111-1111-111111111111", "name": "host-a", "cluster": "c1",
    "managementIp": "10.77.0.11", "state": "Enabled", "status": "Connected", "reason": null}"#;
const VM: &str = r#"{"uuid": "33333333-3333-3333-3333-333333333333", "name": "vm1", "cluster": "c1", "ha": "NeverStop",
    "state": "Running", "hostUuid": "11111111-1111-1111-1111-111111111111", "host": "host-a",
    "lastHostUuid": null, "incarnation": 2, "wanted": true,
            "volumes": [{"primaryStorageUuid": "22222222-2222-2222-2222-222222222222",
    "installPath": "vhost://vm1", "root": true}]}"#;
const REF: &str = r#"{"id": 1, "hostUuid": "11111111-1111-1111-1111-111111111111", "host": "host-a",
    "primaryStorageUuid": "22222222-2222-2222-2222-222222222222", "storage": "vhost-1", "protocol": "Vhost",
    "status": "Disconnected", "reason": "the target does not run", "redeploys": 3, "skipPings": 7}"#;
const STORAGE_HOST: &str = r#"{"hostUuid": "11111111-1111-1111-1111-111111111111", "host": "host-a",
    "primaryStorageUuid": "22222222-2222-2222-2222-222222222222", "storage": "vhost-1", "status": "Disconnected",
    "reason": "the target does not run", "checkError": {"code": "SYS.1001", "description": "timed out", "details": "d",
    "cause": null, "opaque": {"k": "v"}}}"#;
const MACHINE: &str = r#"{"machineId": "m", "bootId": "b"}"#;
const SIGHT: &str = r#"{"euid": 0, "hostPids": true, "hidepid": false, "unreadable": 1, "unnamed": 0}"#;
const ERROR: &str = r#"{"code": "SYS.1001", "description": "timed out", "details": "d", "cause": null, "opaque": {}}"#;
const STEP: &str = r#"{"name": "deploy-vhost-target", "error": null, "note": "started"}"#;

/// Replaces `H`, `S`, `V`, `C` and the names above by what they stand for, so that the samples stay readable.
fn expand(sample: &str) -> String {
    let id = |digit: &str| {
        format!(
            "\"{0}{0}{0}{0}{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}-{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}{0}\"",
            digit
        )
    };
    let pairs = [
        ("@host", HOST.to_owned()),
        ("@vm", VM.to_owned()),
        ("@ref", REF.to_owned()),
        ("@storageHost", STORAGE_HOST.to_owned()),
        ("@step", STEP.to_owned()),
        ("@error", ERROR.to_owned()),
        ("@H", id("1")),
        ("@S", id("2")),
        ("@V", id("3")),
        ("@C", id("4")),
        ("@A", id("5")),
        ("@M", MACHINE.to_owned()),
        ("@T", SIGHT.to_owned()),
        ("@J", r#"{"journalId": "j", "generation": 1, "seq": 9, "epoch": 3}"#.to_owned()),
    ];
    pairs.iter().fold(sample.to_owned(), |text, (name, value)| text.replace(name, value))
}

struct Golden {
    seen: BTreeSet<String>,
    text: String,
}

impl Golden {
    /// JSON and back is the same; the wire and back is the same; cut short anywhere it is an error.
    fn check<T: Serialize + DeserializeOwned>(&mut self, what: &str, sample: &str) -> T {
        let json: Value = serde_json::from_str(&expand(sample)).unwrap_or_else(|e| panic!("{what}: {e}: {sample}"));
        let value: T = serde_json::from_value(json.clone()).unwrap_or_else(|e| panic!("{what} from JSON: {e}"));
        assert_eq!(serde_json::to_value(&value).unwrap(), json, "{what} has other names in JSON than the sample");
        let bytes = codec::to_bytes(&value).unwrap();
        let back: T = codec::from_bytes(&bytes).unwrap_or_else(|e| panic!("{what} from the wire: {e}"));
        assert_eq!(serde_json::to_value(&back).unwrap(), json, "{what} changes on the wire");
        for len in 0..bytes.len() {
            assert!(codec::from_bytes::<T>(&bytes[..len]).is_err(), "{what} cut to {len} bytes is taken for whole");
        }
        let more: Vec<u8> = bytes.iter().copied().chain([0]).collect();
        assert!(codec::from_bytes::<T>(&more).is_err(), "{what} with a byte too many is taken for whole");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.text.push_str(&format!("{what}\n  {hex}\n"));
        value
    }

    fn message<M: Message>(&mut self, sample: &str, reply: &str) {
        let what = format!("{} v{} {:?}", M::NAME, M::VERSION, M::LANE);
        let message: M = self.check(&what, sample);
        self.check::<M::Reply>(&format!("{} v{} reply", M::NAME, M::VERSION), reply);
        let enveloped = codec::encode(&message).unwrap();
        let envelope = codec::open(&enveloped).unwrap();
        assert_eq!((envelope.name.as_str(), envelope.version), (M::NAME, M::VERSION));
        codec::decode::<M>(&enveloped).unwrap();
        self.seen.insert(M::NAME.to_owned());
    }

    fn event<E: Event>(&mut self, name: &str, sample: &str, subject: &str) {
        let event: E = self.check(&format!("{} v{} {name}", E::TOPIC, E::VERSION), sample);
        assert_eq!(event.subject(), subject, "{name}");
        self.seen.insert(name.to_owned());
    }
}

macro_rules! golden {
    (
        $golden:ident;
        $($type:ident $sample:literal => $reply:literal;)* ;
        $($event:ident $json:literal about $subject:literal;)*
    ) => {
        $($golden.message::<$type>($sample, $reply);)*
        $($golden.event::<$event>(stringify!($event), $json, $subject);)*
    };
}

#[test]
fn every_message_keeps_its_wire_form() {
    let mut golden = Golden { seen: BTreeSet::new(), text: String::new() };
    golden! { golden;
        RecordMsg r#"{"topic": "t", "subject": "s", "payload": "{}", "durability": "Intent"}"# => r#"{"seq": 7}"#;
        SiblingFenceVmOnHostMsg r#"{"failedHostUuid": @H, "vmUuid": @V, "clusterUuid": @C, "haTargetHostUuid": @S,
            "machine": @M}"# =>
            r#"{"alive": true, "killed": false, "sshReachable": true, "qemuFound": false, "executorHostUuid": @H,
            "executorRole": "sibling", "reason": "r", "machine": @M, "sight": @T}"#;
        SiblingFenceVmCmd r#"{"vmUuid": @V, "failedHostIp": "10.77.0.11", "failedHostSshPort": 22,
            "failedHostUuid": @H, "machine": @M}"# =>
            r#"{"alive": false, "killed": true, "sshReachable": true, "qemuFound": true, "executorHostUuid": null,
            "executorRole": null, "reason": "", "machine": null, "sight": null}"#;
        HaStartVmInstanceMsg r#"{"vmInstanceUuid": @V, "judgerClassName": "j", "softAvoidHostUuids": [@H],
            "hostUuid": null, "haReason": "r"}"# => r#"{"hostUuid": @H}"#;
        HostPingCmd r#"{"hostUuid": @H, "head": @J}"# =>
            r#"{"hostUuid": @H, "version": "0.1.0", "bootId": "b", "machine": @M, "witness": @J}"#;
        HostFactsCmd r#"{}"# =>
            r#"{"hostUuid": @H, "version": "0.1.0", "hostname": "h", "accel": "kvm", "qemuVersion": "7.2.22",
            "memoryMib": 1024, "availableMib": 512, "cpus": 2, "freeHugepages": 16, "addresses": ["10.77.0.11",
            "fd00::1"]}"#;
        DiagnoseHostCmd r#"{"hostUuid": @H, "siblings": [{"hostUuid": @S, "host": "host-b", "ip": "10.77.0.12",
            "sshPort": 22}],
            "needs": {"hugepages": 16, "vhostTarget": true, "containers": false, "paths": ["/p"]}}"# =>
            r#"{"hostUuid": @H, "unixMs": 5, "findings": [{"check": "ssh-login", "about": "host-b",
            "verdict": "fail", "found": "f", "why": "w", "mend": "m"}]}"#;
        PingHostMsg r#"{"timeoutMs": 2000}"# =>
            r#"{"connected": false, "reason": "no answer", "bootId": "", "machine": @M}"#;
        QueryPingsMsg r#"{}"# => r#"{"pings": [{"agoS": 7, "tookUs": 1500, "answered": true}]}"#;
        ChangeHostStateMsg r#"{"hostUuid": @H, "action": "Maintain"}"# => r#"@host"#;
        QueryServingHostsMsg r#"{"clusterUuid": @C}"# =>
            r#"{"hostUuids": [@H], "answeringHostUuids": [@H, @S], "doubtfulHostUuids": [@S], "enabled": 3}"#;
        PlanDrainMsg r#"{"hostUuid": @H}"# =>
            r#"{"host": "host-a", "feasible": false, "vms": [{"vm": "vm1", "target": null, "what": "w"}]}"#;
        PlanHaStartMsg r#"{"hostUuid": null}"# =>
            r#"{"vm": "vm1", "feasible": true, "evidence": ["e"], "steps": ["s"]}"#;
        ScanHostMsg r#"{"hostUuid": @H}"# => r#"{"seenBy": [@S], "unseenBy": [], "reason": "r"}"#;
        ScanHostCmd r#"{"hostUuid": @H, "hostIp": "10.77.0.11", "sshPort": 22, "agentPort": 7070}"# =>
            r#"{"ssh": true, "agent": false, "reason": "r"}"#;
        QueryCandidatesMsg r#"{"clusterUuid": @C}"# =>
            r#"{"candidates": [{"hostUuid": @H, "availableMib": 64, "reservedMib": 16, "vms": 2}]}"#;
        QueryCensusMsg r#"{"clusterUuid": @C}"# =>
            r#"{"unsettledHostUuids": [@H], "unheardHostUuids": [@H], "disconnectedHostUuids": [@H],
            "unreachableHostUuids": [@H], "maintainedHostUuids": [@H], "searchedHostUuids": [@H],
            "occupied": [[@H, 2]], "claims": [[@V, @H]]}"#;
        FindTargetMsg r#"{"vmUuid": @V, "clusterUuid": @C, "memoryMib": 16, "hostUuid": null, "lastHostUuid": @H,
            "placeHostUuids": [@H], "softAvoidHostUuids": [@H], "dryRun": false, "mayHaveMoved": true}"# =>
            r#"{"hostUuid": @H, "full": 1, "silentHostUuids": [@H], "unheardHostUuids": [], "seenHostUuids": [@S]}"#;
        QuarantineHostMsg r#"{"hostUuid": @H, "reason": "r"}"# => r#"{}"#;
        ConfirmHostFencedMsg r#"{"hostUuid": @H, "by": "root"}"# => r#"{}"#;
        SetQuarantineMsg r#"{"hostUuid": @H, "quarantined": true, "reason": "r"}"# => r#"{}"#;
        QueryHaMsg r#"{}"# =>
            r#"{"hosts": [{"hostUuid": @H, "standing": "s"}], "vms": [{"vmUuid": @V, "why": "w"}], "braked": [@C]}"#;
        QueryWatchersMsg r#"{"installPath": {"Ceph": {"pool": "rbd", "image": "vm1"}}}"# =>
            r#"{"watchers": [{"address": "10.77.0.11:0/7", "ip": "10.77.0.11"}]}"#;
        FenceHostOnStorageMsg r#"{"hostUuid": @H, "reason": "r"}"# => r#"{"osdEpoch": 41, "addresses": ["fd00::1"]}"#;
        LiftStorageFenceMsg r#"{"hostUuid": @H}"# => r#"{}"#;
        ForgetStorageFenceMsg r#"{"hostUuid": @H, "reason": "r"}"# => r#"{}"#;
        QueryStorageFencesMsg r#"{}"# => r#"{"hostUuids": [@H]}"#;
        LookForVmMsg r#"{"hostUuid": null}"# => r#"@vm"#;
        QueryHostsMsg r#"{}"# => r#"{"hosts": [@host], "refs": [@ref], "storages": [@storageHost]}"#;
        CheckHostHealthMsg r#"{"hostUuid": @H}"# =>
            r#"{"protocols": [{"protocol": "Vhost", "health": "Failed", "reason": "r"},
            {"protocol": "CBD", "health": "Ok", "reason": null}, {"protocol": "NVMEoF", "health": "Warn",
            "reason": "r"},
            {"protocol": "iSCSI", "health": "Unknown", "reason": "r"}, {"protocol": "NBD", "health": "Ok",
            "reason": null},
            {"protocol": "RBD", "health": "Ok", "reason": null}], "errors": [@error]}"#;
        RedeployNowMsg r#"{"hostUuid": @H, "primaryStorageUuid": @S, "protocol": "Vhost"}"# => r#"{}"#;
        ContinueRedeployMsg r#"{"hostUuid": @H}"# => r#"{}"#;
        DeployClientMsg r#"{"hostUuid": @H, "protocol": "Vhost", "attempt": 3, "skippedPings": 4}"# =>
            r#"{"steps": [@step]}"#;
        ActivateVolumeMsg r#"{"hostUuid": @H, "installPath": {"Vhost": {"name": "vm1"}}, "bdevName": "vm1-0",
            "vmUuid": @V}"# =>
            r#"{"vhostUser": {"socketPath": "/run/vm1-0.sock"}}"#;
        DeactivateVolumeMsg r#"{"hostUuid": @H, "bdevName": "vm1-0"}"# => r#"{}"#;
        PrepareVhostTargetEnvCmd r#"{"hugepages": 1024}"# =>
            r#"{"freeHugepages": 1024, "hugepageMount": "/dev/hugepages", "notes": ["n"]}"#;
        DeployVhostCmd r#"{"primaryStorageUuid": @S, "storage": "vhost-1", "volumeDir": null,
            "onTargetLoss": "continue"}"# =>
            r#"{"pid": 7, "started": true, "exports": 2, "missing": ["b: r"], "reset": [@V], "continued": [@V]}"#;
        VhostTargetHealthCmd r#"{"primaryStorageUuid": @S, "containerName": null, "controlSock": "/s"}"# =>
            r#"{"targetRunning": false, "reason": "r"}"#;
        CreateVhostBdevCmd r#"{"primaryStorageUuid": @S, "logicalPool": "p", "volume": "v", "bdevName": "b",
            "volumeDir": "/d", "vmUuid": @V}"# =>
            r#"{"socketPath": "/run/b.sock"}"#;
        DeleteVhostBdevCmd r#"{"primaryStorageUuid": @S, "bdevName": "b"}"# => r#"{}"#;
        StartVmCmd r#"{"vmUuid": @V, "name": "vm1", "incarnation": 2, "epoch": 3, "notAfterMs": 9, "memoryMib": 16,
            "qemuArgs": ["-nodefaults"], "libvirtXml": null, "head": @J,
            "disks": [{"source": {"vhostUser": {"socketPath": "/s"}}, "root": true},
            {"source": {"file": {"path": "/f"}}, "root": false},
            {"source": {"rbd": {"pool": "p", "image": "i", "conf": "/c", "user": "u"}}, "root": false}]}"# =>
            r#"{"pid": 7, "accel": "kvm", "memory": "memfd"}"#;
        StopVmCmd r#"{"vmUuid": @V, "epoch": 3, "incarnation": 2}"# => r#"{}"#;
        ListVmsCmd r#"{"epoch": 3, "void": {"vmUuid": @V, "incarnation": 2}}"# =>
            r#"{"vms": [{"vmUuid": @V, "pid": 7, "incarnation": null, "otherAgent": false, "incoming": true,
            "kind": "export",
                "stranger": "uid 65534"}], "clockMs": 5, "sight": @T, "machine": @M}"#;
        StartVmMsg r#"{"hostUuid": @H}"# => r#"@vm"#;
        StopVmMsg r#"{}"# => r#"@vm"#;
        VacateVmMsg r#"{"hostUuid": @H}"# => r#"@vm"#;
        QueryVmMsg r#"{}"# => r#"@vm"#;
        RetireMsg r#"{}"# => r#"{}"#;
        ForgetHostMsg r#"{"hostUuid": @H}"# => r#"@vm"#;
        DeployClientCmd r#"{"clientIp": "10.77.0.11", "sshPort": 22, "sshUsername": "root"}"# => r#"{}"#;
        UpdateHostDependencyCmd r#"{"clientIp": "10.77.0.11"}"# => r#"{}"#;
        VhostHostCmd r#"{"hostIp": "10.77.0.11", "sshPort": 22, "sshUsername": "root"}"# => r#"{}"#;
        CreateVhostBdevOnHostCmd r#"{"hostIp": "10.77.0.11", "sshPort": 22, "sshUsername": "root",
            "logicalPool": "p", "volume": "v",
            "bdevName": "b"}"# => r#"{"socketPath": "/var/zbsvhost/sockets/b"}"#;
        DeleteVhostBdevOnHostCmd r#"{"hostIp": "10.77.0.11", "sshPort": 22, "sshUsername": "root", "bdevName": "b"}"# =>
            r#"{}"#;
        CheckHostConnectionCmd r#"{"clientIp": "10.77.0.11"}"# => r#"{"connected": true, "reason": null}"#;
        MdsFactsCmd r#"{}"# => r#"{"version": "1"}"#;
        ;
        SiblingFenceAudited r#"{"attempt": @A, "vmUuid": @V, "vm": "vm1", "failedHostUuid": @H,
            "failedHost": "host-a", "clusterUuid": @C,
            "haTargetHostUuid": @S, "outcome": "success-killed", "executorHostUuid": null, "reason": "r",
            "evidence": [{"hostUuid": @H, "source": "sibling",
            "verdict": "unknown", "unknown": "other-machine", "by": "host-b", "machine": @M, "sight": @T,
            "afterMs": 7, "said": "s"}]}"# about "vm1";
        EventRecorded r#"{"seq": 7, "time": "2026-01-01T00:00:00.000Z", "topic": "t", "subject": "s",
            "payload": "{}", "hash": "h"}"# about "7";
        ControllerStarted r#"{"epoch": 2, "version": "0.1.0"}"# about "controller";
        ControllerBehind r#"{"hostUuid": @H, "host": "host-a", "witness": @J, "head": @J}"# about "controller";
        ControllerRestored r#"{"journalId": "j", "generation": 2, "epoch": 3, "witness": @J, "heard": 2,
            "silent": ["host-c"]}"# about "controller";
        HostStatusChanged r#"{"hostUuid": @H, "oldStatus": "Connecting", "newStatus": "Disconnected", "reason": "r",
            "inventory": @host}"# about "host-a";
        HostStateChanged r#"{"hostUuid": @H, "host": "host-a", "oldState": "Enabled", "newState": "Maintenance",
            "draining": true}"# about "host-a";
        StorageHostStatusChanged r#"{"hostUuid": @H, "host": "host-a", "primaryStorageUuid": @S,
            "storage": "vhost-1", "oldStatus": null,
            "newStatus": "Connected", "reason": null}"# about "vhost-1@host-a";
        ProtocolStatusChanged r#"{"hostUuid": @H, "host": "host-a", "primaryStorageUuid": @S, "storage": "vhost-1",
            "protocol": "Vhost",
            "oldStatus": "Connected", "newStatus": "Disconnected", "reason": "r"}"# about "vhost-1@host-a/Vhost";
        ProtocolRedeploy r#"{"hostUuid": @H, "host": "host-a", "primaryStorageUuid": @S, "storage": "vhost-1",
            "protocol": "Vhost",
            "phase": "intent", "attempt": 1, "skippedPings": 0, "steps": [@step]}"# about "vhost-1@host-a/Vhost";
        BestEffortStepFailed r#"{"hostUuid": @H, "host": "host-a", "primaryStorageUuid": @S, "storage": "vhost-1",
            "step": @step}"# about "vhost-1@host-a";
        VmStateChanged r#"{"vmUuid": @V, "vm": "vm1", "oldState": "Stopped", "newState": "Starting", "hostUuid": @H,
            "host": "host-a",
            "incarnation": 2, "wanted": true, "reason": "r", "mayRunOn": [@S]}"# about "vm1";
        VmIntruder r#"{"vmUuid": @V, "vm": "vm1", "hostUuid": @H, "host": "host-a", "phase": "end-intended",
            "reason": "r"}"# about "vm1";
        FenceIntended r#"{"attempt": @A, "vmUuid": @V, "vm": "vm1", "failedHostUuid": @H, "clusterUuid": @C,
            "haTargetHostUuid": @S, "level": "storage"}"#
            about "vm1";
        StorageFenceChanged r#"{"primaryStorageUuid": @S, "storage": "ceph-1", "hostUuid": @H, "host": "host-a",
            "phase": "lift-intended",
            "addresses": ["10.77.0.11"], "osdEpoch": 41, "lastingSeconds": 3600, "reason": "r"}"# about "host-a@ceph-1";
        HostSuspected r#"{"hostUuid": @H, "host": "host-a"}"# about "host-a";
        HostIdentified r#"{"hostUuid": @H, "host": "host-a", "machine": @M}"# about "host-a";
        HostFailed r#"{"hostUuid": @H, "host": "host-a", "unseenBy": ["host-b"], "reason": "r"}"# about "host-a";
        HostQuarantineChanged r#"{"hostUuid": @H, "host": "host-a", "quarantined": true, "reason": "r"}"#
            about "host-a";
        HostConfirmedFenced r#"{"hostUuid": @H, "host": "host-a", "confirmed": true, "by": "root"}"# about "host-a";
        StormBrakeChanged r#"{"clusterUuid": @C, "cluster": "c1", "engaged": true, "hosts": ["host-a"], "reason": "r"}"#
            about "c1";
        VmHaStarted r#"{"vmUuid": @V, "vm": "vm1", "fromHost": "host-a", "hostUuid": @H, "host": "host-b",
            "reason": "r"}"# about "vm1";
        VmHaBlocked r#"{"vmUuid": @V, "vm": "vm1", "reason": "r"}"# about "vm1";
        VmMoveChanged r#"{"vmUuid": @V, "vm": "vm1", "fromHostUuid": @H, "fromHost": "host-a", "incarnation": 7,
            "moving": true,
            "host": "host-b", "reason": "r"}"# about "vm1";
        InventoryChanged r#"{"by": "root", "changes": ["host host-a: added"]}"# about "inventory";
        HostDrained r#"{"hostUuid": @H, "host": "host-a"}"# about "host-a";
    }
    insta::assert_snapshot!(golden.text);
    assert_eq!(golden.seen, declared(), "a message is declared but has no sample here, or the other way round");
}

/// The names in every `message!`, `event!` and `agent_command!` line of the sources.
fn declared() -> BTreeSet<String> {
    let sources = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src")).unwrap();
    let mut names = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(source.unwrap().path()).unwrap();
        for line in text.lines() {
            let name = ["message!(", "event!(", "agent_command!("].iter().find_map(|start| line.strip_prefix(start));
            names.extend(name.and_then(|rest| rest.split(',').next()).map(str::to_owned));
        }
    }
    assert!(names.len() > 30, "the sources were not found");
    names
}
