//! Limits for free text from other processes.
//!
//! Purpose: agents, sibling hosts, storages and MDS report problems as free text, which goes to the journal, terminals,
//! logs and webhooks.
//! Invariants: a text from [`bounded`] has at most [`MAX_WORDS`] bytes and a mark if it was cut; a text from [`clean`]
//! moves no cursor, begins no line and does not change the direction of writing.
//! Alternatives considered: rejecting a reply because of its text. Its evidence stays valid.

/// Bytes of a text from another process, at most. Too low: the reason of a failure is cut off. Too high: a peer fills
/// the journal, and a record with texts of several peers does not fit.
pub const MAX_WORDS: usize = 1024;

/// Whether a terminal shows the character and does nothing else.
fn is_plain(c: char) -> bool {
    // Beside control characters: line separators, and marks that change the direction of writing.
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line, with a blank in place of each character that would control a terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

/// The text of [`clean`], cut to at most [`MAX_WORDS`] bytes.
pub fn bounded(text: &str) -> String {
    cut(&clean(text), MAX_WORDS)
}

/// The text, cut to at most `most` bytes between two characters; a cut text ends with its original length.
pub fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let mark = format!("... (of {} bytes)", text.len());
    let mut end = most.saturating_sub(mark.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{mark}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters_with_a_mark() {
        for c in ["x", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            let long = bounded(&c.repeat(70_000));
            assert!(long.len() <= MAX_WORDS && long.len() > MAX_WORDS - 8, "{} bytes", long.len());
            assert!(long.ends_with(&format!("... (of {} bytes)", 70_000 * c.len())), "{long}");
        }
        let fits = "x".repeat(MAX_WORDS);
        assert_eq!(bounded(&fits), fits);
    }

    #[test]
    fn clean_text_has_no_control_characters() {
        let odd = "a\u{1b}[31mb\u{1b}]0;title\u{7}c\r\nd\u{9b}2Ke\u{2028}f\u{202e}g\u{7f}h\0i\tj";
        assert_eq!(clean(odd), "a [31mb ]0;title c  d 2Ke f g h i j");
        let fine = "Gr\u{fc}\u{df}e, \u{4f60}\u{597d} \u{1f600} 100 % (of 3)";
        assert_eq!(clean(fine), fine);
    }
}
