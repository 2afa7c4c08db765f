//! The SSH path from a host to its sibling hosts: key, known hosts, and a login without effect.
//!
//! Invariants: the login uses the code of a fence (`node/sibling.rs`), so a login that works here works there; a
//! login that was not tried is unknown, never ok.

use std::net::IpAddr;

use futures_util::future::join_all;
use ringfence_drivers::{
    files::open_to_others,
    node::{
        sibling,
        ssh::{self, PublicKey, SshError, SshSettings},
    },
};
use ringfence_messages::{
    doctor::{Finding, SiblingAddress},
    evidence::UnknownReason,
};
use ringfence_service::checks::{Check, of, quoted};

const WHY_KEY: &str = "without it this host cannot kill VMs of a failed host";
const WHY_KNOWN: &str = "without a known host key there is no login: this host could not fence it";
const WHY_TWINS: &str =
    "a sibling host is identified by its host key: with one key for two hosts, a fence may inspect the wrong host";
const WHY_LOGIN: &str = "a sibling host kills VMs of a failed host through this login";

/// Checks the key file of `[ssh]`.
pub(crate) fn own_key(ssh: Option<&SshSettings>) -> Finding {
    let check = of("ssh-key", WHY_KEY);
    let Some(ssh) = ssh else {
        let remedy = "add to agent.toml: [ssh] key_file = \"/etc/ringfence/id_ed25519\", known_hosts_file = \
                    \"/etc/ringfence/known_hosts\"; ssh-keygen -q -t ed25519 -N '' -f /etc/ringfence/id_ed25519";
        return check.fail("the agent's file has no [ssh]", remedy);
    };
    let (file, check) = (&ssh.key_file, check.about(ssh.key_file.display()));
    let make =
        format!("ssh-keygen -q -t ed25519 -N '' -f {0}; ssh-copy-id -i {0}.pub {1}@SIBLING", quoted(file), ssh.user);
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => check.fail("the key does not exist", make),
        Err(error) => check.fail(format!("cannot be read: {error}"), format!("ls -l {}", quoted(file))),
        Ok(metadata) => match (ssh::own_key(ssh), open_to_others(&metadata)) {
            (Ok(_), _) => check.ok("only its owner may read it"),
            (Err(trouble), Some(_)) => check.fail(trouble.details, format!("chmod 600 {}", quoted(file))),
            (Err(trouble), None) => {
                check.fail(format!("not a private key without a passphrase: {}", trouble.details), make)
            }
        },
    }
}

/// Checks the path to each of these hosts, concurrently.
pub(crate) async fn look(ssh: Option<&SshSettings>, siblings: &[SiblingAddress]) -> Vec<Finding> {
    let tried = siblings.iter().map(|sibling| way(ssh, sibling));
    let mut findings: Vec<Finding> = join_all(tried).await.into_iter().flatten().collect();
    findings.extend(ssh.and_then(|ssh| twins(ssh, siblings)));
    findings
}

/// Two sibling hosts with one host key, which could be mistaken for each other.
fn twins(ssh: &SshSettings, siblings: &[SiblingAddress]) -> Option<Finding> {
    let keys = |of: &SiblingAddress| {
        let ip = of.ip.parse::<IpAddr>().ok()?;
        ssh::believed_keys(ssh, ip, of.ssh_port).ok()
    };
    let known: Vec<_> = siblings.iter().filter_map(|of| Some((of, keys(of)?))).collect();
    let one =
        |a: &[PublicKey], b: &[PublicKey]| a.iter().any(|key| b.iter().any(|other| other.key_data() == key.key_data()));
    let twins = known.iter().enumerate().find_map(|(n, (of, keys))| {
        let (other, _) = known[..n].iter().find(|(_, others)| one(keys, others))?;
        Some((&other.host, &of.host))
    });
    let check = of("host-keys", WHY_TWINS);
    match (twins, known.len()) {
        (_, 0 | 1) => None,
        (None, n) => Some(check.ok(format!("{n} sibling hosts, each with its own host key"))),
        (Some((a, b)), _) => Some(check.fail(
            format!("{a} and {b} have the same SSH host key: a cloned image, or two addresses of one machine"),
            format!(
                "on {b}: rm /etc/ssh/ssh_host_*; dpkg-reconfigure openssh-server; then add its new keys to \
                 known_hosts here"
            ),
        )),
    }
}

async fn way(ssh: Option<&SshSettings>, to: &SiblingAddress) -> Vec<Finding> {
    let login = || of("ssh-login", WHY_LOGIN).about(&to.host);
    let known = || of("known-hosts", WHY_KNOWN).about(&to.host);
    let not_tried = |why: &str, remedy: &str| login().unknown(format!("not tried: {why}"), remedy);
    let Some(ssh) = ssh else { return vec![not_tried("the agent's file has no [ssh]", "fix ssh-key first")] };
    let Ok(ip) = to.ip.parse::<IpAddr>() else {
        return vec![not_tried(&format!("{:.60?} is not an IP address", to.ip), "correct management_ip")];
    };
    let file = quoted(&ssh.known_hosts_file);
    let learn = format!(
        "ssh-keyscan -p {} {ip} >> {file}; compare with ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on {}",
        to.ssh_port, to.host
    );
    let known = match ssh::believed_keys(ssh, ip, to.ssh_port) {
        Ok(keys) => known().ok(format!("{} keys of {ip}", keys.len())),
        Err(trouble) => {
            return vec![
                known().fail(trouble.details, learn),
                not_tried("its host key is unknown", "fix known-hosts first"),
            ];
        }
    };
    if let Err(trouble) = ssh::own_key(ssh) {
        return vec![known, not_tried(&trouble.details, "fix ssh-key first")];
    }
    let rehearsal = sibling::rehearse(ssh, ip, to.ssh_port).await;
    vec![known, judge(login(), ssh, to, ip, rehearsal)]
}

fn judge(
    check: Check,
    ssh: &SshSettings,
    to: &SiblingAddress,
    ip: IpAddr,
    rehearsal: Result<sibling::Rehearsal, SshError>,
) -> Finding {
    let (port, known, key) = (to.ssh_port, quoted(&ssh.known_hosts_file), quoted(&ssh.key_file));
    let trouble = match rehearsal {
        Ok(login) if login.uid == 0 => return check.ok(format!("works, as root; kills by {}", login.by)),
        Ok(login) => {
            let found = format!("works, but as user {} instead of root: it may kill only its own QEMUs", login.uid);
            return check.warn(found, "set user = \"root\" in [ssh], or run QEMU there as this user");
        }
        Err(trouble) => trouble,
    };
    match trouble.reason {
        UnknownReason::HostKeyMismatch => check.fail(
            format!("its host key has changed: {}", trouble.details),
            format!(
                "on {}'s console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; if it matches the new key here: \
                 ssh-keygen -f {known} -R '[{ip}]:{port}'; ssh-keygen -f {known} -R {ip}; ssh-keyscan -p {port} {ip} \
                 >> {known}",
                to.host
            ),
        ),
        UnknownReason::AuthFailed => check.fail(
            format!("authentication failed: {}", trouble.details),
            format!("ssh-copy-id -i {key}.pub -p {port} {}@{ip}", ssh.user),
        ),
        UnknownReason::BadExit | UnknownReason::Unparsable => check.fail(
            format!("the login works, but a fence would fail there: {}", trouble.details),
            format!("ssh -i {key} -p {port} {}@{ip} 'id -u; command -v ringfence tr awk readlink'", ssh.user),
        ),
        _ if trouble.unreachable => check.fail(
            format!("no answer: {}", trouble.details),
            format!("on {}: systemctl enable --now ssh; open port {port} in its firewall", to.host),
        ),
        _ => check.unknown(
            trouble.details,
            format!("ssh -v -i {key} -p {port} -o UserKnownHostsFile={known} {}@{ip} id", ssh.user),
        ),
    }
}
