//! What a host says of itself: known hosts, and `/proc`.
//!
//! Properties: a key is believed only for the address on its own line, and never if it was revoked; arguments are read
//! as the kernel wrote them.

use std::{fs, path::PathBuf, sync::OnceLock};

use ringfence_drivers::node::{
    proc::{Process, arguments, parse_stat},
    ssh::known_keys,
};

/// The file that the bytes are put into: in memory, one for each process that searches.
fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| PathBuf::from(format!("/dev/shm/ringfence-fuzz-known-hosts.{}", std::process::id())))
}

/// A file of known hosts, asked for an address on the usual port and on another.
pub(crate) fn known_hosts(bytes: &[u8]) {
    let path = file();
    fs::write(path, bytes).expect("a file in memory can be written");
    let text = String::from_utf8_lossy(bytes);
    for (port, names) in [(22, "10.77.0.11"), (2222, "[10.77.0.11]:2222")] {
        let known = known_keys(path, "10.77.0.11".parse().expect("an address"), port);
        for key in known.unwrap_or_default() {
            let key = key.to_openssh().expect("a key can be written");
            let blob = key.split(' ').nth(1).expect("a key has a blob");
            let lines = || text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
            let revoked = lines().any(|line| line.first() == Some(&"@revoked") && line.get(3) == Some(&blob));
            assert!(!revoked, "a revoked key is believed");
            let named = |hosts: &str| hosts.split(',').any(|host| host == names || host.starts_with("|1|"));
            let its_own = lines().any(|line| line.len() >= 3 && named(line[0]) && !line[0].starts_with(['#', '@']));
            assert!(its_own, "a key is believed that stands beside another name");
        }
    }
    fs::remove_file(path).expect("it was just written");
}

/// A command line, and a line of `stat`.
pub(crate) fn proc(bytes: &[u8]) {
    let argv = arguments(bytes);
    let whole = bytes.iter().filter(|byte| **byte == 0).count();
    assert_eq!(argv.len(), whole, "an argument ends with a zero");
    if let Ok(text) = std::str::from_utf8(bytes) {
        let again: String = argv.iter().flat_map(|arg| [arg.as_str(), "\0"]).collect();
        assert!(text.starts_with(&again), "arguments are not as they were written");
        if let Some(stat) = parse_stat(text) {
            let name = text.rfind(')').expect("a name");
            let fields: Vec<&str> = text[name + 1..].split_ascii_whitespace().collect();
            assert!(fields[0].starts_with(stat.state) && fields[19].parse() == Ok(stat.start), "{stat:?} of {text:?}");
        }
    }
    // A uuid is found where the kernel put it as an argument of its own, and nowhere else.
    let process = Process { pid: 1, start: 1, argv };
    let uuid = "33333333-3333-3333-3333-333333333333";
    let token = format!("-uuid\0{uuid}\0").into_bytes();
    let at = bytes.windows(token.len()).position(|window| window == token);
    let there = (0..bytes.len()).any(|at| bytes[at..].starts_with(&token) && (at == 0 || bytes[at - 1] == 0));
    assert!(at.is_some() || !there);
    assert_eq!(process.has_option("-uuid", uuid), there, "{:?}", process.argv);
}
