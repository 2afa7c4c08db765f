//! Times of records as the page and the live view show them.

/// The time of day of `2026-11-21T10:00:00.000Z`, to the second; another text as it is.
pub fn clock(time: &str) -> &str {
    time.get(11..19).unwrap_or(time)
}
