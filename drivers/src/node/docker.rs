//! The Docker engine of a host, where vhost targets run in containers.

use std::time::Duration;

use bollard::Docker;
use ringfence_messages::{Code, ErrorCode, Result};

/// How long the engine may take to answer. Too high: a hung engine hangs a health check.
pub const ENGINE_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the local engine and has it answer.
///
/// # Errors
/// `SYS.1006` if there is none or it does not answer in time, with the fix.
pub async fn engine() -> Result<Docker> {
    let missing = |why: String| {
        let details = format!("no Docker engine answers on this host: {why}. Install docker.io and start its service");
        ErrorCode::new(Code::OPERATION, details)
    };
    let docker = Docker::connect_with_local_defaults().map_err(|e| missing(e.to_string()))?;
    match tokio::time::timeout(ENGINE_TIMEOUT, docker.ping()).await {
        Ok(Ok(_)) => Ok(docker),
        Ok(Err(error)) => Err(missing(error.to_string())),
        Err(_) => Err(missing(format!("no answer within {ENGINE_TIMEOUT:?}"))),
    }
}

/// Whether a container runs.
///
/// # Errors
/// `SYS.1006` if the engine cannot be asked or knows no such container.
pub async fn is_running(container: &str) -> Result<bool> {
    let docker = engine().await?;
    let asked = tokio::time::timeout(ENGINE_TIMEOUT, docker.inspect_container(container, None)).await;
    let odd = |why: String| ErrorCode::new(Code::OPERATION, format!("container {container}: {why}"));
    let inspected = asked.map_err(|_| odd(format!("no answer within {ENGINE_TIMEOUT:?}")))?;
    Ok(inspected.map_err(|e| odd(e.to_string()))?.state.and_then(|state| state.running).unwrap_or(false))
}
