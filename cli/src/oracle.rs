//! Tells from what the lab's guests say on their serial lines whether a disk ever had two writers.
//!
//! A guest writes ten times a second, and says `.` for each write, `E` for one that failed, and `S` when somebody else wrote
//! since. Invariants: what was not seen proves nothing. A probe that failed, or whose answer is cut short, is an error with what
//! it said; that nobody else wrote is believed only of guests that wrote themselves. A host that is down says nothing, and is
//! known to be down by the lab's own word alone.
//! Rejected: `grep S /run/*.serial`. It finds nothing where there is nothing, and where it could not look.

use std::{collections::BTreeMap, process::Output};

/// What a host is asked, by `host-exec.sh HOST sh -c SCRIPT`: a line for each guest, and a last one that says that it was all. A
/// file that cannot be read ends it: of a pipe `sh` tells only how the last program ended, so that none begins with the file.
pub const SCRIPT: &str = "set -eu; for f in /run/*.serial; do [ -e \"$f\" ] || continue; t=$(cat \"$f\"); \
     n=$(printf %s \"$t\" | tr -cd . | wc -c); s=$(printf %s \"$t\" | tr -cd S | wc -c); echo \"$f $n $s\"; done; \
     echo complete";

/// What the lab says of a host without power.
const DOWN: &str = "host-exec.sh: host is down";

/// What one guest said on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// How often it wrote.
    pub writes: u64,
    /// How often it saw that somebody else had written.
    pub others: u64,
}

/// What the guests of one host said, by VM; nothing of a host that is down.
pub type Told = Option<BTreeMap<String, Guest>>;

/// Whether the lab says that the host is down.
pub fn is_down(output: &Output) -> bool {
    !output.status.success() && String::from_utf8_lossy(&output.stderr).trim() == DOWN
}

/// Reads what [`SCRIPT`] answered.
///
/// # Errors
/// That it could not be looked, with all that the probe said.
pub fn read(output: &Output) -> Result<Told, String> {
    if is_down(output) {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stdout);
    let broken = |why: &str| {
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(format!("the probe is broken ({why}, {}): {said}{errors}", output.status))
    };
    if !output.status.success() {
        return broken("it failed");
    }
    let Some(lines) = said.strip_suffix("complete\n") else { return broken("its answer is cut short") };
    let mut told = BTreeMap::new();
    for line in lines.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [file, writes, others] = words[..] else { return broken("it says something else") };
        let vm = file.strip_prefix("/run/").and_then(|name| name.strip_suffix(".serial"));
        match (vm, writes.parse(), others.parse()) {
            (Some(vm), Ok(writes), Ok(others)) => drop(told.insert(vm.to_owned(), Guest { writes, others })),
            _ => return broken("it says something else"),
        }
    }
    Ok(Some(told))
}

/// What is wrong: guests that saw another writer.
pub fn split_brain(hosts: &[(&str, Told)]) -> Vec<String> {
    let guests = hosts.iter().flat_map(|(host, told)| told.iter().flatten().map(move |guest| (host, guest)));
    let split = guests.filter(|(_, (_, guest))| guest.others > 0);
    split.map(|(host, (vm, guest))| format!("{vm} on {host} saw another writer {} times", guest.others)).collect()
}

/// Which of these VMs wrote nowhere, so that nothing can be told of them. No VM at all is wrong too.
pub fn silent(hosts: &[(&str, Told)], vms: &[String]) -> Vec<String> {
    if vms.is_empty() {
        return vec!["no VM runs: there is nothing to be told".to_owned()];
    }
    let writes =
        |vm: &str| hosts.iter().filter_map(|(_, told)| told.as_ref()?.get(vm)).map(|guest| guest.writes).sum::<u64>();
    vms.iter().filter(|vm| writes(vm) == 0).map(|vm| format!("{vm} never wrote")).collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt, process::ExitStatus};

    use super::*;

    fn said(code: i32, out: &str, err: &str) -> Output {
        Output { status: ExitStatus::from_raw(code << 8), stdout: out.into(), stderr: err.into() }
    }

    #[test]
    fn a_probe_that_broke_is_no_peace() {
        for (what, output) in [
            ("nothing", said(0, "", "")),
            ("nothing, and an error", said(1, "", "nsenter: cannot open /proc/7/ns/mnt: No such file or directory\n")),
            ("cut short", said(0, "/run/vm1.serial 7 0\n", "")),
            ("cut in a line", said(0, "/run/vm1.se", "")),
            ("an exit status", said(2, "/run/vm1.serial 7 0\ncomplete\n", "tr: read error\n")),
            ("other words", said(0, "/run/vm1.serial x 0\ncomplete\n", "")),
            ("down, it says itself", said(1, "host-exec.sh: host is down\n", "")),
            ("down, and more", said(1, "", "host-exec.sh: host is down\nand more\n")),
            ("down with success", said(0, "", "host-exec.sh: host is down\n")),
        ] {
            let error = read(&output).unwrap_err();
            let all = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            assert!(error.contains("broken") && error.contains(&all), "{what}: {error}");
        }
        assert_eq!(read(&said(1, "", "host-exec.sh: host is down\n")), Ok(None));
        assert_eq!(read(&said(0, "complete\n", "")), Ok(Some(BTreeMap::new())));
    }

    #[test]
    fn who_did_not_write_says_nothing_of_others() {
        let told = |lines: &str| read(&said(0, &format!("{lines}complete\n"), "")).unwrap();
        let hosts = [
            ("host-a", told("/run/vm1.serial 0 0\n/run/vm2.serial 9 0\n")),
            ("host-b", told("/run/vm1.serial 12 0\n")),
            ("host-c", None),
        ];
        let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(silent(&hosts, &all(&["vm1", "vm2"])), [""; 0]);
        assert_eq!(silent(&hosts, &all(&["vm1", "vm3"])), ["vm3 never wrote"]);
        assert_eq!(silent(&hosts, &[]).len(), 1);
        assert_eq!(split_brain(&hosts), [""; 0]);
        let split = [("host-b", told("/run/vm1.serial 12 3\n"))];
        assert_eq!(split_brain(&split), ["vm1 on host-b saw another writer 3 times"]);
    }

    #[test]
    fn the_script_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("vm1.serial"), "..e..S.E").unwrap();
        let ask = || {
            let script = SCRIPT.replace("/run/", &format!("{}/", dir.path().display()));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            let here = String::from_utf8(output.stdout.clone()).unwrap();
            let here = here.replace(&format!("{}/", dir.path().display()), "/run/");
            read(&Output { stdout: here.into(), ..output })
        };
        assert_eq!(ask().unwrap().unwrap()["vm1"], Guest { writes: 5, others: 1 });
        std::fs::remove_file(dir.path().join("vm1.serial")).unwrap();
        assert_eq!(ask(), Ok(Some(BTreeMap::new())));
        // What cannot be read was not seen.
        std::fs::create_dir(dir.path().join("vm2.serial")).unwrap();
        assert!(ask().is_err());
    }
}
