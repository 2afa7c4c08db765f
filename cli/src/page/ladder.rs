//! A fence attempt, drawn as its ladder: which level was tried when, what it found, and how it ended.

use std::collections::BTreeMap;

use maud::{Markup, html};
use ringfence_actors::ports::Record;
use ringfence_messages::{
    Event as _,
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

/// The rungs, from the cheapest proof to a human's word; `says` begins what the audit has of each.
const RUNGS: [(&str, &str, Option<FenceLevel>); 4] = [
    ("A sibling kills it over SSH", "sibling: ", Some(FenceLevel::Sibling)),
    ("Its storage refuses the host", "storage: ", Some(FenceLevel::Storage)),
    ("A human attests that the host is off", "human: ", None),
    ("Nobody new watches its volumes", "watchers: ", None),
];

/// What an audit says of each rung, in order. A rung's own words may hold the sign that stands between rungs.
fn evidence(reason: &str) -> Vec<String> {
    let mut of: Vec<String> = Vec::new();
    for part in reason.split("; ") {
        match of.last_mut() {
            Some(last) if !RUNGS.iter().any(|(_, says, _)| part.starts_with(says)) => {
                last.push_str("; ");
                last.push_str(part);
            }
            _ => of.push(part.to_owned()),
        }
    }
    of
}

/// The attempt as a list of rungs, and how long each phase took.
pub(super) fn shown(attempt: &Attempt, phases: &[Phase]) -> Markup {
    let evidence: Vec<String> = attempt.ended.iter().flat_map(|(_, audit)| evidence(&audit.reason)).collect();
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
                @for (what, says, level) in RUNGS {
                    @let found: Vec<&str> = evidence.iter().filter_map(|line| line.strip_prefix(says)).collect();
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
            @if let Some((time, _)) = &attempt.ended { p { "Ended at " time datetime=(time) { (time.get(11..23).unwrap_or(time)) } ", audited once." } }
            (chart::phases(phases))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_several_siblings_say_stays_together() {
        let reason = "sibling: cannot reach it (host-b: refused; host-c: refused); storage: refuses 10.77.0.11; human: Ada attested";
        let sibling = "sibling: cannot reach it (host-b: refused; host-c: refused)";
        assert_eq!(evidence(reason), [sibling, "storage: refuses 10.77.0.11", "human: Ada attested"]);
        assert_eq!(evidence("odd; words"), ["odd; words"]);
    }
}
