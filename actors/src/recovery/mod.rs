//! Self-heal.
