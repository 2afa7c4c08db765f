//! Removes the secrets of a request from its reply.
//!
//! Purpose: an MDS whose login failed may report the password, which would go to the journal, the API and webhooks.
//! Invariants: the whole secret is hidden everywhere, also in its JSON, URL, hex and base64 forms; in an error, and in
//! a reply that is not of the protocol, every part of [`MIN_PART`] bytes or more is hidden too; secrets are hidden
//! before texts are cut, because a cut secret would not be found.
//! Alternatives considered: hiding parts in valid replies too. The protocol's own words may be parts of a password.

use ringfence_actors::texts;
use ringfence_messages::words;
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

/// What stands there instead.
const HIDDEN: &str = "[secret]";

/// The shortest part of a secret that is hidden in errors. Too low: words of a sentence vanish, since they begin like a
/// password. Too high: more of it is told.
const MIN_PART: usize = 6;

/// The shortest secret that is looked for. A shorter one protects nothing, and would be found everywhere.
const MIN_SECRET: usize = 4;

/// The secrets that one peer was given.
#[derive(Default)]
pub(crate) struct Secrets {
    /// As they are.
    plain: Vec<String>,
    /// And as they may be told: the longest first, for one may be in another.
    forms: Vec<String>,
}

impl Secrets {
    pub(crate) fn of<'a>(given: impl IntoIterator<Item = &'a SecretString>) -> Secrets {
        let plain: Vec<String> = given.into_iter().map(|of| of.expose_secret().to_owned()).collect();
        let plain: Vec<String> = plain.into_iter().filter(|of| of.len() >= MIN_SECRET).collect();
        let mut forms: Vec<String> = plain.iter().flat_map(|of| forms(of)).collect();
        forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
        forms.dedup();
        Secrets { plain, forms }
    }

    /// A text without them.
    pub(crate) fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for form in &self.forms {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), HIDDEN);
            }
        }
        text
    }

    /// A text without them and without parts of them.
    pub(crate) fn hide_parts(&self, text: &str) -> String {
        let text = self.hide(text);
        let bytes = text.as_bytes();
        let is_part = |at: usize| {
            let part = &bytes[at..at + MIN_PART];
            self.plain.iter().any(|of| of.as_bytes().windows(MIN_PART).any(|window| window == part))
        };
        let mut told = vec![true; bytes.len()];
        for at in 0..(bytes.len() + 1).saturating_sub(MIN_PART) {
            if is_part(at) {
                told[at..at + MIN_PART].fill(false);
            }
        }
        let mut shown = String::with_capacity(text.len());
        let mut hiding = false;
        for (at, c) in text.char_indices() {
            let hide = told[at..at + c.len_utf8()].contains(&false);
            match (hide, hiding) {
                (false, _) => shown.push(c),
                (true, false) => shown.push_str(HIDDEN),
                (true, true) => {}
            }
            hiding = hide;
        }
        shown
    }

    /// An answer without them: its words bounded too, and its error without parts of them.
    pub(crate) fn hide_in(&self, mut answer: Value) -> Value {
        let error = answer.get_mut("error").map(Value::take);
        let mut answer = texts::each(answer, &|said| words::bounded(&self.hide(said)));
        if let (Some(error), Some(of)) = (error, answer.as_object_mut()) {
            of.insert("error".to_owned(), texts::each(error, &|said| words::bounded(&self.hide_parts(said))));
        }
        answer
    }
}

/// How a secret may look in what somebody says.
fn forms(secret: &str) -> Vec<String> {
    let json = Value::from(secret).to_string();
    let json = json[1..json.len() - 1].to_owned();
    // JSON in JSON, as in an error that quotes a request.
    let twice = Value::from(json.as_str()).to_string();
    let twice = twice[1..twice.len() - 1].to_owned();
    let percent = |upper: bool| -> String {
        let of = |byte: u8| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        };
        secret.bytes().map(of).collect()
    };
    let form = percent(true).replace("%20", "+");
    let hexes = [hex::encode(secret), hex::encode_upper(secret)];
    let mut all = vec![secret.to_owned(), json, twice, percent(true), percent(false), form];
    all.extend(hexes);
    for before in 0..3 {
        let inner = base64_within(secret.as_bytes(), before);
        all.push(inner.replace('+', "-").replace('/', "_"));
        all.push(inner);
    }
    all.retain(|form| form.len() >= MIN_SECRET);
    all
}

/// The characters of base64 that a secret alone decides, wherever in a longer text it stands: so many bytes are before
/// it.
fn base64_within(secret: &[u8], before: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |n: usize| secret[n / 8] >> (7 - n % 8) & 1;
    // The first whole character that begins in the secret: 8 bits of a byte are 6 of a character and 2 of the next one.
    let (first, bits) = ((6 - before * 8 % 6) % 6, secret.len() * 8);
    let sixes = (first..bits).step_by(6).filter(|at| at + 6 <= bits);
    sixes.map(|at| char::from(ALPHABET[(at..at + 6).fold(0, |sum, n| sum << 1 | usize::from(bit(n)))])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "p\"ss wörd/12+%&=";

    fn secrets() -> Secrets {
        Secrets::of([&SecretString::from(SECRET)])
    }

    #[test]
    fn a_secret_is_found_in_every_form() {
        let quoted = serde_json::json!({ "sshPassword": SECRET }).to_string();
        // Made by `base64`, `base64 --wrap=0 | tr +/ -_`, `xxd -p` and a browser's encodeURIComponent.
        let told = [
            SECRET.to_owned(),
            quoted.clone(),
            Value::from(quoted).to_string(),
            "p%22ss%20w%C3%B6rd%2F12%2B%25%26%3D".to_owned(),
            "p%22ss+w%C3%B6rd%2F12%2B%25%26%3D".to_owned(),
            "702273732077c3b672642f31322b25263d".to_owned(),
            "cCJzcyB3w7ZyZC8xMislJj0=".to_owned(),
            "cCJzcyB3w7ZyZC8xMislJj0".to_owned(),
            "dTpwInNzIHfDtnJkLzEyKyUmPQ==".to_owned(), // u:SECRET
            "dXM6cCJzcyB3w7ZyZC8xMislJj0=".to_owned(), // us:SECRET
            "eHB1OnAic3Mgd8O2cmQvMTIrJSY9".to_owned(), // xpu:SECRET, which is u: once more
            "YTpwInNzIHfDtnJkLzEyKyUmPTpi".to_owned(), // a:SECRET:b
        ];
        for told in told {
            let hidden = secrets().hide(&format!("login failed: {told} is wrong"));
            assert!(hidden.contains(HIDDEN), "{told}: {hidden}");
            assert!(hidden.starts_with("login failed: ") && hidden.ends_with(" is wrong"), "{hidden}");
        }
    }

    #[test]
    fn parts_of_a_secret_are_hidden_in_errors() {
        let told = "sshpass -p 'p\"ss wör' 'd/12+%&=': no login";
        let hidden = secrets().hide_parts(told);
        assert_eq!(hidden, format!("sshpass -p '{HIDDEN}' '{HIDDEN}': no login"));
        assert_eq!(secrets().hide_parts("ss w rd/1"), "ss w rd/1", "too little to be known");
        assert_eq!(secrets().hide(told), told);
        let answer =
            serde_json::json!({ "error": { "details": told, "opaque": { SECRET: "x" } }, "reply": { "a": [SECRET] } });
        let hidden = secrets().hide_in(answer).to_string();
        assert_eq!(hidden.matches(HIDDEN).count(), 4, "{hidden}");
        assert!(!hidden.contains("wör") && !hidden.contains("12+"), "{hidden}");
    }

    #[test]
    fn secret_at_a_cut_is_hidden_whole() {
        let told = format!("{}{SECRET}{}", "x".repeat(words::MAX_WORDS - 30), "y".repeat(100));
        let hidden = secrets().hide_in(serde_json::json!({ "error": told }));
        assert!(!hidden.to_string().contains("p\\\""), "{hidden}");
    }

    #[test]
    fn without_a_secret_nothing_is_hidden() {
        for none in [Secrets::default(), Secrets::of([&SecretString::from("abc")])] {
            assert_eq!(none.hide_parts("abcabc abc"), "abcabc abc");
        }
    }
}
