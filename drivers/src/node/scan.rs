//! Probes from this host whether another host answers.
//!
//! Invariant: an open connection proves nothing, because the kernel of a hung host accepts connections. The peer must
//! send data: the SSH banner, or the beginning of an HTTP response. No secret is sent.

use std::{net::IpAddr, time::Duration};

use ringfence_messages::{
    Code, ErrorCode, Result,
    ha::{ScanHostCmd, ScanHostCmdReply},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// How long each probe may take. Two tries of a lost SYN fit. Too low: a busy network looks dead. Too high: the verdict
/// on a host that lost its power waits for it.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Looks for a host by its SSH and its agent, both at once.
///
/// # Errors
/// `SYS.1007` for an address that is none.
pub async fn look(cmd: &ScanHostCmd) -> Result<ScanHostCmdReply> {
    let ip: IpAddr = cmd.host_ip.parse().map_err(|_| {
        ErrorCode::new(Code::INVALID_ARGUMENT, format!("hostIp {:.60?} is not a literal IP address", cmd.host_ip))
    })?;
    let (ssh, agent) = tokio::join!(
        speaks(ip, cmd.ssh_port, b"", b"SSH-"),
        speaks(ip, cmd.agent_port, b"HEAD / HTTP/1.0\r\n\r\n", b"HTTP/"),
    );
    let text = |name: &str, port: u16, result: &Result<(), String>| match result {
        Ok(()) => format!("{name} answers on {ip} port {port}"),
        Err(why) => format!("{name} on {ip} port {port}: {why}"),
    };
    let reason = format!("{}, {}", text("SSH", cmd.ssh_port, &ssh), text("agent", cmd.agent_port, &agent));
    Ok(ScanHostCmdReply { ssh: ssh.is_ok(), agent: agent.is_ok(), reason })
}

/// Whether a server at the port begins its answer with `expected`.
async fn speaks(ip: IpAddr, port: u16, say: &[u8], expected: &[u8]) -> Result<(), String> {
    let exchange = async {
        let mut stream = TcpStream::connect((ip, port)).await?;
        stream.write_all(say).await?;
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    match tokio::time::timeout(PROBE_TIMEOUT, exchange).await {
        Err(_) => Err(format!("no answer within {PROBE_TIMEOUT:?}")),
        Ok(Err(error)) => Err(error.to_string()),
        // Something else listens at the port.
        Ok(Ok(answer)) if answer != expected => {
            Err(format!("unexpected answer {:?}", String::from_utf8_lossy(&answer)))
        }
        Ok(Ok(_)) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::HostId;
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, u16) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    /// A hung host: the kernel takes connections, nobody speaks.
    #[tokio::test]
    async fn one_that_only_takes_connections_is_not_seen() {
        let ((silent, ssh_port), (talks, agent_port)) = (listener().await, listener().await);
        let look_at = |agent_port| async move {
            let host_uuid = HostId::from_name("a");
            look(&ScanHostCmd { host_uuid, host_ip: "127.0.0.1".to_owned(), ssh_port, agent_port }).await.unwrap()
        };
        let server = tokio::spawn(async move {
            let (mut stream, _) = talks.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 401 Unauthorized\r\n\r\n").await.unwrap();
        });
        let reply = look_at(agent_port).await;
        assert_eq!((reply.ssh, reply.agent), (false, true), "{reply:?}");
        server.await.unwrap();
        let reply = look_at(agent_port).await;
        assert_eq!((reply.ssh, reply.agent), (false, false), "refused and silent: {reply:?}");
        assert!(reply.reason.contains("no answer within") && reply.reason.contains("refused"), "{reply:?}");
        drop(silent);
    }
}
