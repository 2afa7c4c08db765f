//! The decision tables of a fence, as `fence/tables.rs` decides them.

use ringfence_actors::fence::{
    Policy,
    policy::{OnNoFencer, OnSshUnreachable, OnWatchers, Profile},
    tables::{Next, Watched, own_watches, reported, watched},
};
use ringfence_messages::{
    Code, ErrorCode, Result,
    ceph::Watcher,
    evidence::{Machine, Sight},
    fence::SiblingFenceVmOnHostReply,
};
use serde::de::{IntoDeserializer, value::Error};

use crate::{part, table};

const PAGE: &str = "docs/fencing.md";
const PROFILES: [(&str, Policy); 2] = [("safe", Profile::Safe.policy()), ("zstack", Profile::Zstack.policy())];

/// The words by which a file chooses a value: those that it is read by.
fn words<T: for<'de> serde::Deserialize<'de> + PartialEq>(value: T, of: &[&'static str]) -> String {
    let named =
        |word: &str| T::deserialize(IntoDeserializer::<Error>::into_deserializer(word)).is_ok_and(|it| it == value);
    format!("`{}`", of.iter().find(|word| named(word)).expect("one of its words"))
}

fn says_watchers(policy: &Policy) -> String {
    words(policy.on_watchers, &["fence", "block"])
}

fn says_ssh(policy: &Policy) -> String {
    words(policy.on_ssh_unreachable, &["storage-fence", "allow", "block"])
}

fn says_no_fencer(policy: &Policy) -> String {
    words(policy.on_no_fencer, &["block", "allow"])
}

/// One test: it may write the page anew, part by part.
#[test]
fn the_tables_of_the_page_are_those_of_the_fence() {
    profiles();
    who_watches();
    reports();
}

fn profiles() {
    let row = |key: &str, of: &dyn Fn(&Policy) -> String| {
        let mut row = vec![format!("`{key}`")];
        row.extend(PROFILES.iter().map(|(_, policy)| of(policy)));
        row
    };
    let rows = [
        row("on_watchers", &says_watchers),
        row("on_ssh_unreachable", &says_ssh),
        row("on_no_fencer", &says_no_fencer),
    ];
    part(PAGE, "profiles", &table(&["key in `[fence]`", "`safe`", "`zstack`"], &rows));
}

fn watchers(ips: &[&str]) -> Result<Vec<Watcher>> {
    Ok(ips.iter().map(|ip| Watcher { address: format!("{ip}:0/7"), ip: ip.parse().unwrap() }).collect())
}

fn who_watches() {
    const FAILED: &str = "10.0.0.1";
    const OTHER: &str = "10.0.0.9";
    let unknown = || Err(ErrorCode::new(Code::TIMEOUT, "no answer"));
    let judge = |volumes: &[Result<Vec<Watcher>>], policy: &Policy| {
        let volumes = volumes.iter().enumerate().map(|(n, watchers)| (format!("v{n}"), watchers));
        let judged = match watched(volumes, &[FAILED.parse().unwrap()]) {
            Watched::Nobody => Ok(()),
            Watched::Own(by) => by.iter().try_for_each(|(_, by)| own_watches(by, policy)),
            Watched::Refuse(why) => Err(why),
        };
        if judged.is_ok() { "on to the ladder" } else { "start refused" }
    };
    let cases: [(&str, Vec<Result<Vec<Watcher>>>); 4] = [
        ("one of them cannot be asked, or answers oddly", vec![watchers(&[]), unknown()]),
        ("somebody else than the failed host", vec![watchers(&[FAILED, OTHER])]),
        ("the failed host alone", vec![watchers(&[FAILED]), watchers(&[])]),
        ("nobody", vec![watchers(&[]), watchers(&[])]),
    ];
    let policies =
        [OnWatchers::Fence, OnWatchers::Block].map(|on_watchers| Policy { on_watchers, ..Policy::default() });
    let rows = cases.map(|(who, volumes)| {
        let mut row = vec![who.to_owned()];
        row.extend(policies.iter().map(|policy| judge(&volumes, policy).to_owned()));
        row
    });
    let heads = policies.each_ref().map(|policy| format!("`on_watchers =` {}", says_watchers(policy)));
    part(PAGE, "watchers", &table(&["who watches the VM's volumes", &heads[0], &heads[1]], &rows));
}

fn says(next: Next) -> String {
    match next {
        Next::Start(outcome) => format!("start: `{outcome}`"),
        Next::Storage { fenced, not } => {
            format!("storage fence: then start, `{fenced}`; if it is not confirmed, refused, `{not}`")
        }
        Next::Refuse(outcome) => format!("refused: `{outcome}`"),
    }
}

/// SSH reachable, alive, found, killed.
fn report([ssh_reachable, alive, qemu_found, killed]: [bool; 4]) -> Result<SiblingFenceVmOnHostReply> {
    Ok(SiblingFenceVmOnHostReply {
        alive,
        killed,
        ssh_reachable,
        qemu_found,
        sight: Some(Sight::full()),
        machine: Some(machine()),
        ..SiblingFenceVmOnHostReply::default()
    })
}

fn machine() -> Machine {
    Machine { machine_id: "m".to_owned(), boot_id: "b".to_owned() }
}

fn reports() {
    let error = |code: Code| Err(ErrorCode::new(code, "no answer"));
    const ODD: &str = "a report that contradicts itself";
    let what = |bits: [bool; 4]| match bits {
        [true, false, true, true] => "killed, and verified gone",
        [true, false, false, false] => "reached; no such QEMU, verified",
        [true, true, _, _] => "reached; it is still alive",
        [false, true, false, false] => "SSH does not reach the host",
        _ => ODD,
    };
    // All sixteen reports, each under the row that it belongs to; those of one row are judged alike.
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |what: &str, when: &str, report: &Result<SiblingFenceVmOnHostReply>, policies: &[Policy]| {
        let mut row = vec![what.to_owned(), when.to_owned()];
        row.extend(policies.iter().map(|policy| says(reported(report, &machine(), policy))));
        match rows.iter().find(|known| known[..2] == row[..2]) {
            Some(known) => assert_eq!(*known, row, "{report:?}"),
            None => rows.push(row),
        }
    };
    let both = PROFILES.map(|(_, policy)| policy);
    let of = |bits: u8| [1, 2, 4, 8].map(|bit| bits & bit != 0);
    let order = [13, 1, 3, 2].into_iter().chain(0..16);
    for bits in order.map(of) {
        let what = what(bits);
        if what.starts_with("SSH") {
            for on_ssh_unreachable in [OnSshUnreachable::StorageFence, OnSshUnreachable::Allow, OnSshUnreachable::Block]
            {
                let policies = both.map(|policy| Policy { on_ssh_unreachable, ..policy });
                add(what, &format!("`on_ssh_unreachable =` {}", says_ssh(&policies[0])), &report(bits), &policies);
            }
        } else {
            add(what, "", &report(bits), &both);
        }
    }
    add("no sibling could go, or none answered, or not in the expected shape", "", &error(Code::TIMEOUT), &both);
    for on_no_fencer in [OnNoFencer::Block, OnNoFencer::Allow] {
        let policies = both.map(|policy| Policy { on_no_fencer, ..policy });
        let when = format!("`on_no_fencer =` {}", says_no_fencer(&policies[0]));
        add("no fencer is registered", &when, &error(Code::NO_ROUTE), &policies);
    }
    let head = ["what the sibling reports", "and", "`profile = \"safe\"`", "`profile = \"zstack\"`"];
    part(PAGE, "reports", &table(&head, &rows));
}
