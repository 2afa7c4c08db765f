//! Parsers of single values, and explanations of TOML errors.
//!
//! An error is a pair: problem and remedy.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// A value, or a problem and its remedy.
pub type Read<T> = Result<T, (String, String)>;

/// A duration such as `200ms`, `1s`, `5m`, `1h`.
pub fn duration(text: &str) -> Read<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    let total = number.parse::<u64>().ok().and_then(|n| n.checked_mul(millis));
    match total {
        Some(total) if millis > 0 && total <= 24 * 3_600_000 => Ok(Duration::from_millis(total)),
        _ => Err((
            format!("{text:?} is not a duration"),
            "write a whole number with a unit (ms, s, m or h), at most 24h, such as \"200ms\" or \"1s\"".into(),
        )),
    }
}

/// An address and port such as `127.0.0.1:7080`.
pub fn socket(text: &str) -> Read<SocketAddr> {
    text.parse().map_err(|_| {
        (
            format!("{text:?} is not an address and port"),
            "write an IP address and a port, such as \"127.0.0.1:7080\"".into(),
        )
    })
}

/// An IP address.
pub fn ip(text: &str) -> Read<IpAddr> {
    text.parse().map_err(|_| {
        (
            format!("{text:?} is not an IP address"),
            "write an IP address such as \"10.77.0.11\"; names are not allowed, because a fence must not depend on DNS"
                .into(),
        )
    })
}

/// A name of a cluster, host, storage or VM.
pub fn name(text: &str, longest: usize) -> Read<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() || text.len() > longest || text.starts_with(['.', '-']) || !text.chars().all(fits) {
        return Err((
            format!("{text:?} is not a valid name"),
            format!("use 1 to {longest} characters of A-Z a-z 0-9 . _ -, not starting with . or -"),
        ));
    }
    Ok(())
}

/// A path on a host: absolute, without `..`.
pub fn absolute(text: &str) -> Read<String> {
    if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
        return Err((
            format!("{text:?} is not an absolute path"),
            "write a path that starts with / and has no ..".into(),
        ));
    }
    match text.trim_end_matches('/') {
        "" => Ok("/".to_owned()),
        path => Ok(path.to_owned()),
    }
}

/// The known word most similar to an unknown one, if it is similar enough.
fn nearest<'a>(word: &str, words: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = words.into_iter().map(|known| (strsim::levenshtein(word, known), known)).min()?;
    (near.0 <= 1 + word.len() / 3).then_some(near.1)
}

/// `did you mean X?`, or the list of known words.
pub fn suggest<'a>(word: &str, words: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(word, words.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => {
            let known: Vec<_> = words.into_iter().map(|w| format!("{w:?}")).collect();
            if known.is_empty() {
                "none is defined yet: add its table".into()
            } else {
                format!("use one of {}", known.join(", "))
            }
        }
    }
}

/// The TOML parser's message, and a remedy.
pub fn explain(message: &str) -> (String, String) {
    let message = message.trim().replace('\n', ", ");
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let help = if let Some(unknown) = message.strip_prefix("unknown field `").and_then(|m| m.split('`').next()) {
        format!("remove it, or {}", suggest(unknown, quoted.iter().skip(1).copied().collect::<Vec<_>>()))
    } else if message.starts_with("unknown variant") {
        let (wrong, known) =
            (quoted.first().copied().unwrap_or(""), quoted.iter().skip(1).copied().collect::<Vec<_>>());
        suggest(wrong, known)
    } else if let Some(key) = message.strip_prefix("missing field `").and_then(|m| m.split('`').next()) {
        match key {
            "controller" => "add a [controller] table with state_dir = \"PATH\"".to_owned(),
            key => format!("add {key} = ... to this table"),
        }
    } else if message.starts_with("invalid type") {
        "write the expected type: \"text\" in quotes, numbers and true/false without".to_owned()
    } else if message.starts_with("invalid value") {
        "write a value in the expected range: u32 is a whole number from 0".to_owned()
    } else if message.starts_with("duplicate key") {
        "keep one of the two".to_owned()
    } else if message.contains("unclosed") || message.contains("expected") || message.contains("missing") {
        "invalid TOML: check for a missing quote, bracket or = here".to_owned()
    } else {
        "see docs/configuration.md for valid values".to_owned()
    };
    (message, help)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_a_ceiling() {
        assert_eq!(duration("200ms").unwrap(), Duration::from_millis(200));
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        for odd in ["", "1", "s", "1 s", "-1s", "1.5s", "25h", "99999999999999999999s", "18446744073709551615h"] {
            assert!(duration(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn suggestions_are_near_or_not_made() {
        assert_eq!(nearest("intervall", ["interval", "timeout"]), Some("interval"));
        assert_eq!(nearest("colour", ["interval", "timeout"]), None);
    }
}
