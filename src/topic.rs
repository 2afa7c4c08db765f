//! Globs over topics: `*` stands for any text, `?` for one character, `{name}` for one whole segment.

use ringfence_messages::{Code, ErrorCode, Result};

/// The longest glob. Longer ones are a mistake.
pub const MAX_GLOB_BYTES: usize = 256;

/// A pattern over topics such as `door.*` or `{who}.status-changed`.
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
    /// Reads a glob.
    ///
    /// # Errors
    /// `SYS.1007` if it is empty, too long or a brace is not closed.
    pub fn new(text: &str) -> Result<Glob> {
        let odd = |what: String| ErrorCode::new(Code::INVALID_ARGUMENT, format!("topic glob {text:?}: {what}"));
        if text.is_empty() || text.len() > MAX_GLOB_BYTES {
            return Err(odd(format!("it must have 1 to {MAX_GLOB_BYTES} bytes")));
        }
        let mut parts = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            parts.push(match c {
                '*' => Part::Any,
                '?' => Part::One,
                '{' => {
                    if !chars.by_ref().any(|c| c == '}') {
                        return Err(odd("a { is not closed by }".into()));
                    }
                    Part::Segment
                }
                '}' => return Err(odd("a } closes nothing".into())),
                c => Part::Char(c),
            });
        }
        Ok(Glob(parts))
    }

    /// Whether a topic is of this pattern.
    pub fn matches(&self, topic: &str) -> bool {
        let topic: Vec<char> = topic.chars().collect();
        // reach[i]: the parts so far can match the first i characters. Linear in both, whatever the pattern.
        let mut reach = vec![false; topic.len() + 1];
        reach[0] = true;
        for part in &self.0 {
            let mut next = vec![false; topic.len() + 1];
            for i in 0..=topic.len() {
                next[i] = match part {
                    Part::Any => reach[i] || (i > 0 && next[i - 1]),
                    Part::One => i > 0 && reach[i - 1],
                    Part::Char(c) => i > 0 && reach[i - 1] && topic[i - 1] == *c,
                    Part::Segment => i > 0 && topic[i - 1] != '.' && (reach[i - 1] || next[i - 1]),
                };
            }
            reach = next;
        }
        reach[topic.len()]
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
    fn odd_globs_are_refused_with_the_reason() {
        for (glob, says) in [("", "1 to 256"), ("a{b", "not closed"), ("a}b", "closes nothing")] {
            assert!(Glob::new(glob).unwrap_err().details.contains(says), "{glob}");
        }
        assert!(Glob::new(&"*".repeat(MAX_GLOB_BYTES + 1)).is_err());
        // A pattern that a backtracking matcher would need ages for.
        assert!(!Glob::new(&"*a".repeat(100)).unwrap().matches(&"b".repeat(2000)));
    }
}
