//! Rules that are checked in every build: a debug build panics, a release build refuses and counts.

/// Checks a rule of the product (I1 to I8). In a debug build a violation panics; in a release build it is
/// logged, counted as `ringfence_invariant_violations_total{id}`, and the expression is `false` so that the
/// caller can refuse.
#[macro_export]
macro_rules! invariant {
    ($id:literal, $holds:expr, $($what:tt)+) => {{
        let holds: bool = $holds;
        if !holds {
            metrics::counter!("ringfence_invariant_violations_total", "id" => $id).increment(1);
            tracing::error!(id = $id, "invariant violated: {}", format_args!($($what)+));
            debug_assert!(holds, "{} violated: {}", $id, format_args!($($what)+));
        }
        holds
    }};
}
