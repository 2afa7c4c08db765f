//! The way from a host to the hosts that it would have to fence: key, known hosts, and a login that does nothing.
//!
//! Invariant: the login goes through the very same door as a fence (`node/sibling.rs`), so that what works here works
//! there; a login that was not tried is unknown, never ok.

use std::net::IpAddr;

use futures_util::future::join_all;
use ringfence_drivers::{
    files::open_to_others,
    node::{
        sibling,
        ssh::{self, PublicKey, SshSettings, Trouble},
    },
};
use ringfence_messages::{
    doctor::{Finding, SiblingAddress, Verdict},
    fence::UnknownReason,
};

use super::{Check, of, quoted};

/// Siblings that one agent tries at most. Each costs a login on both ends. Too low: a host's level is guessed from few.
/// Too high: a thousand hosts log in to a thousand hosts.
pub(crate) const MAX_SIBLINGS: usize = 8;

const WHY_KEY: &str = "without it this host can kill no VM of a host that fails tonight";
const WHY_KNOWN: &str = "a host whose key is not known is never logged in to: this one could not fence it";
const WHY_TWINS: &str =
    "a sibling is known by its host key: with one key for two hosts it may look at the wrong one, and find nothing";
const WHY_LOGIN: &str = "this is how a VM is killed there while its host still answers";

/// The key file of a host's `[ssh]`.
pub(crate) fn own_key(ssh: Option<&SshSettings>) -> Finding {
    let check = of("ssh-key", WHY_KEY);
    let Some(ssh) = ssh else {
        let mend = "add to agent.toml: [ssh] key_file = \"/etc/ringfence/id_ed25519\", known_hosts_file = \
                    \"/etc/ringfence/known_hosts\"; ssh-keygen -q -t ed25519 -N '' -f /etc/ringfence/id_ed25519";
        return check.fail("the agent's file has no [ssh]", mend);
    };
    let (file, check) = (&ssh.key_file, check.about(ssh.key_file.display()));
    let make =
        format!("ssh-keygen -q -t ed25519 -N '' -f {0}; ssh-copy-id -i {0}.pub {1}@SIBLING", quoted(file), ssh.user);
    match std::fs::metadata(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => check.fail("there is no key", make),
        Err(error) => check.fail(format!("it cannot be read: {error}"), format!("ls -l {}", quoted(file))),
        Ok(metadata) => match (ssh::own_key(ssh), open_to_others(&metadata)) {
            (Ok(_), _) => check.ok("only its owner may read it"),
            (Err(trouble), Some(_)) => check.fail(trouble.details, format!("chmod 600 {}", quoted(file))),
            (Err(trouble), None) => {
                check.fail(format!("no private key that can be used without a passphrase: {}", trouble.details), make)
            }
        },
    }
}

/// Tries the way to each of these, all at once.
pub(crate) async fn look(ssh: Option<&SshSettings>, siblings: &[SiblingAddress]) -> Vec<Finding> {
    let tried = siblings.iter().map(|sibling| way(ssh, sibling));
    let mut findings: Vec<Finding> = join_all(tried).await.into_iter().flatten().collect();
    findings.extend(ssh.and_then(|ssh| twins(ssh, siblings)));
    findings
}

/// Siblings with one host key: behind either address the other one would be believed.
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
        (None, n) => Some(check.ok(format!("{n} siblings, each with a key of its own"))),
        (Some((a, b)), _) => Some(check.fail(
            format!("{a} and {b} have one SSH host key: an image was cloned, or two addresses lead to one machine"),
            format!("on {b}: rm /etc/ssh/ssh_host_*; dpkg-reconfigure openssh-server; then learn its keys anew here"),
        )),
    }
}

async fn way(ssh: Option<&SshSettings>, to: &SiblingAddress) -> Vec<Finding> {
    let login = || of("ssh-login", WHY_LOGIN).about(&to.host);
    let known = || of("known-hosts", WHY_KNOWN).about(&to.host);
    let not_tried = |why: &str, mend: &str| login().unknown(format!("not tried: {why}"), mend);
    let Some(ssh) = ssh else { return vec![not_tried("the agent's file has no [ssh]", "mend ssh-key first")] };
    let Ok(ip) = to.ip.parse::<IpAddr>() else {
        return vec![not_tried(&format!("{:.60?} is no literal address", to.ip), "correct management_ip")];
    };
    let file = quoted(&ssh.known_hosts_file);
    let learn = format!(
        "ssh-keyscan -p {} {ip} >> {file}; compare with ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub on {}",
        to.ssh_port, to.host
    );
    let known = match ssh::believed_keys(ssh, ip, to.ssh_port) {
        Ok(keys) => known().ok(format!("{} keys of {ip} are known", keys.len())),
        Err(trouble) => {
            return vec![
                known().fail(trouble.details, learn),
                not_tried("its key is not known", "mend known-hosts first"),
            ];
        }
    };
    if let Err(trouble) = ssh::own_key(ssh) {
        return vec![known, not_tried(&trouble.details, "mend ssh-key first")];
    }
    let went = sibling::rehearse(ssh, ip, to.ssh_port).await;
    vec![known, judge(login(), ssh, to, ip, went)]
}

fn judge(
    check: Check,
    ssh: &SshSettings,
    to: &SiblingAddress,
    ip: IpAddr,
    went: Result<sibling::Rehearsal, Trouble>,
) -> Finding {
    let (port, known, key) = (to.ssh_port, quoted(&ssh.known_hosts_file), quoted(&ssh.key_file));
    let trouble = match went {
        Ok(there) if there.uid == 0 => return check.ok(format!("works, as root; kills by {}", there.by)),
        Ok(there) => {
            let found = format!("works, as user {} who is not root: it may kill only QEMUs of its own", there.uid);
            return check.warn(found, "user = \"root\" in [ssh], or run QEMU there as this user");
        }
        Err(trouble) => trouble,
    };
    match trouble.reason {
        UnknownReason::HostKeyMismatch => check.fail(
            format!("its host key has changed: {}", trouble.details),
            format!(
                "on {}'s console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub; if that is the new one here: \
                 ssh-keygen -f {known} -R '[{ip}]:{port}'; ssh-keygen -f {known} -R {ip}; ssh-keyscan -p {port} {ip} >> {known}",
                to.host
            ),
        ),
        UnknownReason::AuthFailed => check.fail(
            format!("it does not let us in: {}", trouble.details),
            format!("ssh-copy-id -i {key}.pub -p {port} {}@{ip}", ssh.user),
        ),
        UnknownReason::BadExit | UnknownReason::Unparsable => check.fail(
            format!("it lets us in, and a fence would not work there: {}", trouble.details),
            format!("ssh -i {key} -p {port} {}@{ip} 'id -u; command -v ringfence tr awk readlink'", ssh.user),
        ),
        _ if trouble.unreachable => check.fail(
            format!("nothing answers: {}", trouble.details),
            format!("on {}: systemctl enable --now ssh; let port {port} through its firewall", to.host),
        ),
        _ => check.unknown(
            trouble.details,
            format!("ssh -v -i {key} -p {port} -o UserKnownHostsFile={known} {}@{ip} id", ssh.user),
        ),
    }
}

/// The siblings to which a login worked, by what their agents found.
pub(crate) fn logins_that_work(findings: &[Finding]) -> impl Iterator<Item = &str> {
    // As one who is not root nothing is proven: its kill may be refused.
    let works = |finding: &&Finding| finding.check == "ssh-login" && finding.verdict == Verdict::Ok;
    findings.iter().filter(works).map(|finding| finding.about.as_str())
}
