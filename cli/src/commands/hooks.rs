//! `ringfence hooks`.

use ringfence_messages::{Code, ErrorCode, Result};
use ringfence_server::notify::{HookInventory, HookTest};
use serde_json::json;

use super::{
    ClientArgs,
    query::{client, or_dash, show, word},
};
use crate::{client::path_part, output::table};

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

pub(super) async fn test(args: &ClientArgs, name: &str) -> Result<()> {
    let path = format!("/v1/hooks/{}/actions", path_part(name));
    let test: HookTest = client(args)?.post(&path, &json!({ "test": {} })).await?;
    show(args, &test, |test| {
        let result = if test.delivered { "accepted" } else { "not accepted" };
        format!("{} was {result} after {} ms: {}", test.id, test.millis, test.says)
    });
    match test.delivered {
        true => Ok(()),
        false => Err(ErrorCode::new(Code::OPERATION, format!("hook {name} did not deliver: {}", test.says))),
    }
}
