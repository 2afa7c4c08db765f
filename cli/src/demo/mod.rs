//! pending
/// pending
pub async fn run(_keep: bool) -> u8 {
    1
}
