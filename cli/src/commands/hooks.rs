//! `ringfence hooks`.

use ringfence_messages::Result;
use ringfence_server::notify::HookInventory;

use super::{
    ClientArgs,
    query::{client, or_dash, show, word},
};
use crate::output::table;

pub(super) async fn list(args: &ClientArgs) -> Result<()> {
    let hooks: Vec<HookInventory> = client(args)?.items("/v1/hooks").await?;
    show(args, &hooks, |hooks| {
        let mut table = table(&[
            "HOOK",
            "KIND",
            "TARGET",
            "TOPICS",
            "CURSOR",
            "LAG",
            "DELIVERED",
            "DROPPED",
            "NEXT TRY",
            "LAST ERROR",
        ]);
        for hook in hooks {
            table.add_row([
                hook.name.clone(),
                word(&hook.kind),
                hook.target.clone(),
                hook.topics.join(","),
                hook.cursor.to_string(),
                hook.lag.to_string(),
                hook.delivered.to_string(),
                hook.given_up.to_string(),
                or_dash(hook.next_try.as_deref()).to_owned(),
                or_dash(hook.last_error.as_deref()).to_owned(),
            ]);
        }
        table.to_string()
    });
    Ok(())
}
