//! Globs over topics: `*` is any text, `?` one character, `{name}` one segment.

use ringfence_messages::{Code, ErrorCode, Result};

/// Bytes of a glob, at most. Too low: valid globs are rejected. Too high: a client can send slow globs.
pub const MAX_GLOB_BYTES: usize = 256;

/// A glob over topics, such as `door.*` or `{who}.status-changed`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Part>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Char(char),
    One,
    Any,
    Segment,
}

impl Glob {
    /// Parses a glob.
    ///
    /// # Errors
    /// `SYS.1007` if the glob is empty, too long or has an unmatched brace.
    pub fn new(text: &str) -> Result<Glob> {
        let malformed = |what: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("topic glob {text:?}: {what}"));
        if text.is_empty() || text.len() > MAX_GLOB_BYTES {
            return Err(malformed(format!("expected 1 to {MAX_GLOB_BYTES} bytes")));
        }
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Any,
                '?' => Part::One,
                '{' => {
                    if !chars.by_ref().any(|c| c == '}') {
                        return Err(malformed("`{` is not closed by `}`".into()));
                    }
                    Part::Segment
                }
                '}' => return Err(malformed("`}` closes nothing".into())),
                c => Part::Char(c),
            });
        }
        Ok(Glob(parts))
    }

    /// Whether a topic matches. Linear in glob and topic.
    pub fn matches(&self, topic: &str) -> bool {
        let topic: Vec<char> = topic.chars().collect();
        // matched[i]: the parts so far match the first i characters.
        let mut matched = vec![false; topic.len() + 1];
        matched[0] = true;
        for part in &self.0 {
            let mut next = vec![false; topic.len() + 1];
            for i in 0..=topic.len() {
                next[i] = match part {
                    Part::Any => matched[i] || (i > 0 && next[i - 1]),
                    Part::One => i > 0 && matched[i - 1],
                    Part::Char(c) => i > 0 && matched[i - 1] && topic[i - 1] == *c,
                    Part::Segment => i > 0 && topic[i - 1] != '.' && (matched[i - 1] || next[i - 1]),
                };
            }
            matched = next;
        }
        matched[topic.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_documented() {
        for (glob, topic, expected) in [
            ("door.opened", "door.opened", true),
            ("door.opened", "door.opene", false),
            ("door.*", "door.opened", true),
            ("door.*", "doors.opened", false),
            ("*", "anything.at-all", true),
            ("door.?pened", "door.opened", true),
            ("door.?", "door.", false),
            ("{what}.opened", "door.opened", true),
            ("{what}.opened", "front.door.opened", false),
            ("{what}.opened", ".opened", false),
            ("a{x}c", "abc", true),
            ("*d*d*", "door.opened", true),
            ("*d*d*d", "door.opened", false),
        ] {
            assert_eq!(Glob::new(glob).unwrap().matches(topic), expected, "{glob} on {topic}");
        }
    }

    #[test]
    fn malformed_globs_are_rejected_with_the_reason() {
        for (glob, reason) in [("", "1 to 256"), ("a{b", "not closed"), ("a}b", "closes nothing")] {
            assert!(Glob::new(glob).unwrap_err().details.contains(reason), "{glob}");
        }
        assert!(Glob::new(&"*".repeat(MAX_GLOB_BYTES + 1)).is_err());
        // A glob that takes exponential time in a backtracking matcher.
        assert!(!Glob::new(&"*a".repeat(100)).unwrap().matches(&"b".repeat(2000)));
    }
}
