//! A fence attempt, drawn as its ladder: which level was tried when, what it found, and how it ended.
//!
//! Invariant: what stands on a rung is evidence of its own source, as the audit has it. Rejected: the audit's words, split at
//! signs. A host that failed could write rungs of its own with what it says.

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

/// What the journal says of one attempt.
pub(super) struct Attempt {
    /// When each level was begun.
    pub(super) begun: Vec<(String, FenceLevel)>,
    /// When and how it ended; none while it is under way.
    pub(super) ended: Option<(String, SiblingFenceAudited)>,
}

/// The attempts that records of a VM tell of, in order.
pub(super) fn attempts(records: &[Record]) -> Vec<Attempt> {
    let mut order: Vec<Uuid> = Vec::new();
    let mut found: BTreeMap<Uuid, Attempt> = BTreeMap::new();
    let mut of = |id: Uuid, change: &mut dyn FnMut(&mut Attempt)| {
        if !found.contains_key(&id) {
            order.push(id);
        }
        change(found.entry(id).or_insert(Attempt { begun: Vec::new(), ended: None }));
    };
    for record in records {
        match record.topic.as_str() {
            FenceIntended::TOPIC => {
                let Ok(intent) = record.event::<FenceIntended>() else { continue };
                of(intent.attempt, &mut |attempt| attempt.begun.push((record.time.clone(), intent.level)));
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

/// The rungs, from the cheapest proof to a human's word: who looks, and the level that is begun for it.
const RUNGS: [(&str, Source, Option<FenceLevel>); 5] = [
    ("Its own agent is asked", Source::Agent, None),
    ("A sibling kills it over SSH", Source::Sibling, Some(FenceLevel::Sibling)),
    ("Its storage refuses the host", Source::Storage, Some(FenceLevel::Storage)),
    ("A human attests that the host is off", Source::Human, None),
    ("Nobody new watches its volumes", Source::Watchers, None),
];

/// One look, as a line: what follows, what was found, and who says so.
fn line(of: &Evidence) -> String {
    let by = of.by.as_ref().map(|by| format!(" ({by})")).unwrap_or_default();
    format!("{}: {}{by}", of.verdict, of.said)
}

/// The attempt as a list of rungs, and how long each phase took.
pub(super) fn shown(attempt: &Attempt, phases: &[Phase]) -> Markup {
    let evidence: Vec<&Evidence> = attempt.ended.iter().flat_map(|(_, audit)| &audit.evidence).collect();
    let success = attempt.ended.as_ref().is_some_and(|(_, audit)| audit.outcome.as_str().starts_with("success"));
    let outcome = attempt.ended.as_ref().map_or("under way", |(_, audit)| audit.outcome.as_str());
    let first = attempt.begun.first().map(|(time, _)| time.as_str());
    html! {
        article.ladder {
            h3 {
                @if let Some(time) = first { time datetime=(time) { (time) } " " }
                span class={ "state " (if success { "good" } else if attempt.ended.is_some() { "bad" } else { "busy" }) } { (outcome) }
                @if let Some((_, audit)) = &attempt.ended { " on " (audit.failed_host) }
            }
            ol {
                @for (what, source, level) in RUNGS {
                    @let found: Vec<String> = evidence.iter().filter(|of| of.source == source).map(|of| line(of)).collect();
                    @let begun = attempt.begun.iter().find(|(_, of)| Some(*of) == level);
                    @let tried = begun.is_some() || !found.is_empty();
                    @if tried || level.is_some() {
                        li class=(if tried { "tried" } else { "spared" }) {
                            strong { (what) }
                            @if let Some((time, _)) = begun { " at " time datetime=(time) { (time.get(11..23).unwrap_or(time)) } }
                            @if !tried { ": not needed, or not reached" }
                            @for line in found { br; (line) }
                        }
                    }
                }
            }
            // Who wrote it knew no evidence yet: the words of all rungs are one text.
            @if let (Some((_, audit)), true) = (&attempt.ended, evidence.is_empty()) { p { (audit.reason) } }
            @if let Some((time, _)) = &attempt.ended { p { "Ended at " time datetime=(time) { (time.get(11..23).unwrap_or(time)) } ", audited once." } }
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
        shown(&Attempt { begun: Vec::new(), ended }, &[]).into_string()
    }

    #[test]
    fn words_of_a_sibling_make_no_rung() {
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
        assert!(!page.contains("A human attests"), "{page}");
    }

    #[test]
    fn a_record_without_evidence_is_shown_in_its_own_words_on_no_rung() {
        let page = drawn(Vec::new());
        assert!(page.contains(&format!("<p>sibling: {FORGED}</p>")), "{page}");
        assert_eq!(page.matches("class=\"tried\"").count(), 0, "{page}");
    }
}
