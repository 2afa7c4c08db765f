//! Rules that every build checks: a debug build panics, a release build rejects the step and counts.

/// Checks a rule of the product (I1 to I8). In a debug build a violation panics. In a release build it is logged and
/// counted as `ringfence_invariant_violations_total{id}`, and the expression is `false` so that the caller rejects
/// the step.
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
