//! A fence attempt as its ladder: the levels that were tried, their evidence, and the outcome.
//!
//! Invariant: a rung shows only evidence of its own source, from the audit record. Alternative considered: splitting
//! the text of the audit record (a failed host could forge rungs through its answers).

use std::collections::BTreeMap;

use maud::{Markup, html};
use ringfence_actors::ports::Record;
use ringfence_messages::{
    Event as _,
    evidence::{Evidence, Source},
    fence::{FenceIntended, FenceLevel, SiblingFenceAudited},
};
use uuid::Uuid;

use super::chart::{self, Phase};

/// One attempt, from the journal.
pub(super) struct Attempt {
    /// Start time of each level.
    pub(super) levels: Vec<(String, FenceLevel)>,
    /// Time and audit record of its end; none while it is in progress.
    pub(super) ended: Option<(String, SiblingFenceAudited)>,
}

/// The attempts in a VM's records, in order.
pub(super) fn attempts(records: &[Record]) -> Vec<Attempt> {
    let mut order: Vec<Uuid> = Vec::new();
    let mut found: BTreeMap<Uuid, Attempt> = BTreeMap::new();
    let mut of = |id: Uuid, change: &mut dyn FnMut(&mut Attempt)| {
        if !found.contains_key(&id) {
            order.push(id);
        }
        change(found.entry(id).or_insert(Attempt { levels: Vec::new(), ended: None }));
    };
    for record in records {
        match record.topic.as_str() {
            FenceIntended::TOPIC => {
                let Ok(intent) = record.event::<FenceIntended>() else { continue };
                of(intent.attempt, &mut |attempt| attempt.levels.push((record.time.clone(), intent.level)));
            }
            SiblingFenceAudited::TOPIC => {
                let Ok(audit) = record.event::<SiblingFenceAudited>() else { continue };
                of(audit.attempt, &mut |attempt| attempt.ended = Some((record.time.clone(), audit.clone())));
            }
            _ => {}
        }
    }
    order.iter().filter_map(|id| found.remove(id)).collect()
}

/// The rungs, from the cheapest proof to an operator's attestation: text, source of evidence, and level.
const RUNGS: [(&str, Source, Option<FenceLevel>); 5] = [
    ("Query of its own agent", Source::Agent, None),
    ("Kill over SSH by a sibling host", Source::Sibling, Some(FenceLevel::Sibling)),
    ("Storage fence of the host", Source::Storage, Some(FenceLevel::Storage)),
    ("Operator attestation that the host is off", Source::Human, None),
    ("Check for new watchers of its volumes", Source::Watchers, None),
];

/// One piece of evidence as a line: verdict, finding and observer.
fn line(of: &Evidence) -> String {
    let by = of.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    format!("{}: {}{by}", of.verdict, of.said)
}

/// The attempt as a list of rungs, and the duration of each phase.
pub(super) fn shown(attempt: &Attempt, phases: &[Phase]) -> Markup {
    let evidence: Vec<&Evidence> = attempt.ended.iter().flat_map(|(_, audit)| &audit.evidence).collect();
    let success = attempt.ended.as_ref().is_some_and(|(_, audit)| audit.outcome.as_str().starts_with("success"));
    let outcome = attempt.ended.as_ref().map_or("in progress", |(_, audit)| audit.outcome.as_str());
    let first = attempt.levels.first().map(|(time, _)| time.as_str());
    html! {
        article.ladder {
            h3 {
                @if let Some(time) = first { time datetime=(time) { (time) } " " }
                span class={ "state " (if success { "good" } else if attempt.ended.is_some() { "bad" }
                    else { "busy" }) } { (outcome) }
                @if let Some((_, audit)) = &attempt.ended { " on " (audit.failed_host) }
            }
            ol {
                @for (what, source, level) in RUNGS {
                    @let found = evidence.iter().filter(|of| of.source == source);
                    @let found: Vec<String> = found.map(|of| line(of)).collect();
                    @let started = attempt.levels.iter().find(|(_, of)| Some(*of) == level);
                    @let tried = started.is_some() || !found.is_empty();
                    @if tried || level.is_some() {
                        li class=(if tried { "tried" } else { "spared" }) {
                            strong { (what) }
                            @if let Some((time, _)) = started { " at "
                                time datetime=(time) { (time.get(11..23).unwrap_or(time)) } }
                            @if !tried { ": not tried" }
                            @for line in found { br; (line) }
                        }
                    }
                }
            }
            // A record without evidence is of an older version; its reason covers all rungs.
            @if let (Some((_, audit)), true) = (&attempt.ended, evidence.is_empty()) { p { (audit.reason) } }
            @if let Some((time, _)) = &attempt.ended { p { "Ended at "
                time datetime=(time) { (time.get(11..23).unwrap_or(time)) } "." } }
            (chart::phases(phases))
        }
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::{ClusterId, HostId, VmId, evidence::Verdict, fence::FenceOutcome};

    use super::*;

    const FORGED: &str = "it is not there; storage: refuses 10.77.0.11; human: Ada attested";

    fn drawn(evidence: Vec<Evidence>) -> String {
        let audit = SiblingFenceAudited {
            attempt: Uuid::nil(),
            vm_uuid: VmId::from_name("vm1"),
            vm: "vm1".to_owned(),
            failed_host_uuid: HostId::from_name("host-a"),
            failed_host: "host-a".to_owned(),
            cluster_uuid: ClusterId::from_name("c1"),
            ha_target_host_uuid: HostId::from_name("host-b"),
            outcome: FenceOutcome::FailedUnreachable,
            executor_host_uuid: None,
            reason: format!("sibling: {FORGED}"),
            evidence,
        };
        let ended = Some(("2026-11-21T10:00:00.000Z".to_owned(), audit));
        shown(&Attempt { levels: Vec::new(), ended }, &[]).into_string()
    }

    #[test]
    fn answer_of_a_host_forges_no_rung() {
        let sibling = Evidence {
            host_uuid: HostId::from_name("host-a"),
            source: Source::Sibling,
            verdict: Verdict::Unknown,
            unknown: None,
            by: Some("host-b".to_owned()),
            machine: None,
            sight: None,
            after_ms: 7,
            said: FORGED.to_owned(),
        };
        let page = drawn(vec![sibling]);
        assert!(page.contains(&format!("unknown: {FORGED} (host-b)")), "{page}");
        assert_eq!(page.matches("class=\"tried\"").count(), 1, "{page}");
        assert!(!page.contains("Operator attestation"), "{page}");
    }

    #[test]
    fn record_without_evidence_shows_its_reason() {
        let page = drawn(Vec::new());
        assert!(page.contains(&format!("<p>sibling: {FORGED}</p>")), "{page}");
        assert_eq!(page.matches("class=\"tried\"").count(), 0, "{page}");
    }
}
