//! Words that somebody else said, made fit to be kept and shown.
//!
//! Purpose: agents, siblings, storages and MDS say in free text what went wrong; it ends up in the journal, on terminals, in logs
//! and in webhooks. Invariants: what went through [`bounded`] has at most [`MAX_WORDS`] bytes and a mark that it was cut; what went
//! through [`clean`] moves no cursor, begins no line and turns no direction of writing.
//! Rejected: refusing an answer for its words. What it proves stays true, however it is told.

/// Bytes that anybody's words may have. Too low: the reason of a failure is cut off before it says anything. Too high: a peer
/// that says a lot grows the journal, and a record with words of several of them does not fit.
pub const MAX_WORDS: usize = 1024;

/// Whether a character is nothing but itself when it is shown.
fn is_plain(c: char) -> bool {
    // Beside control characters: separators of lines, and what turns the direction in which is read.
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line: a blank stands for each character that would do something to a terminal.
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

/// The text as [`clean`] makes it, of at most [`MAX_WORDS`] bytes.
pub fn bounded(text: &str) -> String {
    cut(&clean(text), MAX_WORDS)
}

/// At most so many bytes of a text; one that is cut says how long it was.
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
    fn words_are_cut_between_characters_and_say_so() {
        for c in ["x", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            let long = bounded(&c.repeat(70_000));
            assert!(long.len() <= MAX_WORDS && long.len() > MAX_WORDS - 8, "{} bytes", long.len());
            assert!(long.ends_with(&format!("... (of {} bytes)", 70_000 * c.len())), "{long}");
        }
        let fits = "x".repeat(MAX_WORDS);
        assert_eq!(bounded(&fits), fits);
    }

    #[test]
    fn nothing_that_moves_a_cursor_or_begins_a_line_is_left() {
        let odd = "a\u{1b}[31mb\u{1b}]0;title\u{7}c\r\nd\u{9b}2Ke\u{2028}f\u{202e}g\u{7f}h\0i\tj";
        assert_eq!(clean(odd), "a [31mb ]0;title c  d 2Ke f g h i j");
        let fine = "Gr\u{fc}\u{df}e, \u{4f60}\u{597d} \u{1f600} 100 % (of 3)";
        assert_eq!(clean(fine), fine);
    }
}
