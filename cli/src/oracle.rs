//! Detects two writers on one disk from the serial lines of the lab's guests.
//!
//! A guest writes ten times a second and prints `.` for each write, `E` for a failed write, and `S` if another writer
//! wrote in between. Invariants: missing output proves nothing. A probe that fails or is cut short is an error with
//! its output; the absence of another writer counts only for guests that wrote themselves. A host without power has
//! no output, by the lab's report only. Alternative considered: `grep S /run/*.serial` (it finds nothing on an empty
//! file, and on a failed probe).

use std::{collections::BTreeMap, process::Output};

/// The probe of a host, by `host-exec.sh HOST sh -c SCRIPT`: a line for each guest, and a last line that marks
/// completeness. An unreadable file ends the script: `sh` reports only the last program of a pipe, so no pipe starts
/// with the file.
pub const SCRIPT: &str = "set -eu; for f in /run/*.serial; do [ -e \"$f\" ] || continue; t=$(cat \"$f\"); \
     n=$(printf %s \"$t\" | tr -cd . | wc -c); s=$(printf %s \"$t\" | tr -cd S | wc -c); echo \"$f $n $s\"; done; \
     echo complete";

/// The lab's report of a host without power.
const DOWN: &str = "host-exec.sh: host is down";

/// Counts of one guest on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// Number of writes.
    pub writes: u64,
    /// Number of times that it saw another writer.
    pub others: u64,
}

/// Guests of one host by VM; none for a host without power.
pub type Guests = Option<BTreeMap<String, Guest>>;

/// Whether the lab reports a host without power.
pub fn is_down(output: &Output) -> bool {
    !output.status.success() && String::from_utf8_lossy(&output.stderr).trim() == DOWN
}

/// Reads what [`SCRIPT`] answered.
///
/// # Errors
/// That it could not be looked, with all that the probe said.
pub fn read(output: &Output) -> Result<Guests, String> {
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

/// Guests that saw another writer.
pub fn split_brain(hosts: &[(&str, Guests)]) -> Vec<String> {
    let guests = hosts.iter().flat_map(|(host, told)| told.iter().flatten().map(move |guest| (host, guest)));
    let split = guests.filter(|(_, (_, guest))| guest.others > 0);
    split.map(|(host, (vm, guest))| format!("{vm} on {host} saw another writer {} times", guest.others)).collect()
}

/// VMs that never wrote, so that nothing is proven for them. An empty list of VMs is an error too.
pub fn silent(hosts: &[(&str, Guests)], vms: &[String]) -> Vec<String> {
    if vms.is_empty() {
        return vec!["no VM runs, so nothing is proven".to_owned()];
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
