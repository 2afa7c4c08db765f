//! Identity of disks: one disk belongs to one volume of one VM.
//!
//! Purpose: two VMs that write one image through two storages would be two writers, which no fence detects.
//! Invariants: pure; a disk has one name for each way to reach it, and two disks with a common name are one disk.
//! Names that are relative to a host (a directory, its `ceph.conf`) count within a cluster of hosts. Alternative
//! considered: a query of the storage (`check` works without a storage). The `fsid` of the controller's `ceph.conf`
//! is used if it is set.

use std::path::{Component, Path, PathBuf};

use ringfence_actors::inventory::Storage;
use ringfence_messages::{ClusterId, StorageId, storage::StorageKind, vm::InstallPath};

/// A disk, by one of its names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum DiskIdentity {
    /// An RBD image, by the `fsid` of its cluster or the path of the controller's `ceph.conf`.
    Rbd { cluster: String, pool: String, image: String },
    /// An RBD image, by the `ceph.conf` on hosts of this cluster.
    RbdOnHosts { hosts: ClusterId, conf: String, pool: String, image: String },
    /// A volume of ZBS, by the URL of its MDS.
    Zbs { mds: String, pool: String, volume: String, snapshot: Option<String> },
    /// A file on hosts of this cluster.
    File { hosts: ClusterId, path: PathBuf },
    /// A file in the agents' own directory of a storage.
    OwnFile { storage: StorageId, file: String },
}

/// The controller's access to a storage, as far as it distinguishes disks.
#[derive(Clone, Debug, Default)]
pub(super) struct Reach<'a> {
    /// Ceph: the result of [`ceph_cluster`].
    pub(super) ceph: Option<&'a str>,
    /// ZBS: the URLs of its MDS.
    pub(super) mds: &'a [String],
}

impl DiskIdentity {
    /// All names of the disk at this path.
    pub(super) fn all(storage: &Storage, reach: &Reach<'_>, path: &InstallPath) -> Vec<DiskIdentity> {
        match path {
            InstallPath::Ceph { pool, image } => {
                let (pool, image) = (pool.clone(), image.clone());
                let on_hosts = |hosts: &ClusterId| {
                    let conf = storage.ceph.as_ref()?.conf.clone();
                    Some(DiskIdentity::RbdOnHosts { hosts: *hosts, conf, pool: pool.clone(), image: image.clone() })
                };
                let mut all: Vec<_> = storage.clusters.iter().filter_map(on_hosts).collect();
                all.extend(reach.ceph.map(|cluster| DiskIdentity::Rbd { cluster: cluster.to_owned(), pool, image }));
                all
            }
            InstallPath::Zbs { pool, volume, snapshot } | InstallPath::Cbd { pool, volume, snapshot, .. } => {
                let (pool, volume, snapshot) = (pool.clone(), volume.clone(), snapshot.clone());
                let by = |mds: &String| DiskIdentity::Zbs {
                    mds: mds.clone(),
                    pool: pool.clone(),
                    volume: volume.clone(),
                    snapshot: snapshot.clone(),
                };
                reach.mds.iter().map(by).collect()
            }
            InstallPath::Vhost { name } => files(storage, format!("{name}.raw")),
            InstallPath::Dir { file } => files(storage, file.clone()),
        }
    }
}

fn files(storage: &Storage, file: String) -> Vec<DiskIdentity> {
    let Some(dir) = &storage.volume_dir else {
        return vec![DiskIdentity::OwnFile { storage: storage.id, file }];
    };
    let path = plain(dir).join(file);
    storage.clusters.iter().map(|hosts| DiskIdentity::File { hosts: *hosts, path: path.clone() }).collect()
}

/// A path without `//`, `.` and a trailing `/`. The directory is on hosts, so it cannot be resolved here.
fn plain(path: &str) -> PathBuf {
    Path::new(path).components().filter(|part| !matches!(part, Component::CurDir)).collect()
}

/// The cluster of a `ceph.conf` of the controller: its `fsid`, or the file's path without one.
pub(super) fn ceph_cluster(conf: &Path) -> String {
    let text = std::fs::metadata(conf)
        .is_ok_and(|of| of.is_file() && of.len() <= MAX_CONF_BYTES)
        .then(|| std::fs::read_to_string(conf).ok())
        .flatten();
    fsid(&text.unwrap_or_default())
        .unwrap_or_else(|| conf.canonicalize().unwrap_or_else(|_| conf.to_owned()).display().to_string())
}

/// The largest `ceph.conf` that is read for its `fsid`. Too low: the `fsid` is missed. Too high: a wrong file is read.
const MAX_CONF_BYTES: u64 = 256 << 10;

fn fsid(conf: &str) -> Option<String> {
    let value = |line: &str| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "fsid").then(|| value.trim().to_ascii_lowercase())
    };
    conf.lines().find_map(value).filter(|fsid| !fsid.is_empty())
}

/// Whether a storage of this kind has volumes of this form.
pub(super) fn fits(kind: StorageKind, path: &InstallPath) -> bool {
    matches!(
        (kind, path),
        (StorageKind::Ceph, InstallPath::Ceph { .. })
            | (StorageKind::Zbs, InstallPath::Zbs { .. } | InstallPath::Cbd { .. })
            | (StorageKind::Vhost, InstallPath::Vhost { .. })
            | (StorageKind::Dir, InstallPath::Dir { .. })
    )
}

#[cfg(test)]
mod tests {
    use ringfence_actors::inventory::CephHostAccess;

    use super::*;

    fn storage(name: &str, kind: StorageKind, cluster: &str, dir: Option<&str>) -> Storage {
        let conf = "/etc/ceph/ceph.conf".to_owned();
        Storage {
            id: StorageId::from_name(name),
            name: name.to_owned(),
            kind,
            clusters: vec![ClusterId::from_name(cluster)],
            protocols: Vec::new(),
            volume_dir: dir.map(str::to_owned),
            on_target_loss: Default::default(),
            ceph: (kind == StorageKind::Ceph).then(|| CephHostAccess { conf, user: "compute".to_owned() }),
            watchers_allowed: Vec::new(),
        }
    }

    fn one(a: (&Storage, &Reach<'_>, &str), b: (&Storage, &Reach<'_>, &str)) -> bool {
        let names = |(storage, reach, path): (&Storage, &Reach<'_>, &str)| {
            DiskIdentity::all(storage, reach, &path.parse().unwrap())
        };
        let (a, b) = (names(a), names(b));
        assert!(!a.is_empty() && !b.is_empty());
        a.iter().any(|name| b.contains(name))
    }

    #[test]
    fn an_image_is_one_through_two_storages_and_another_in_another_cluster() {
        let (a, b) = (storage("a", StorageKind::Ceph, "c1", None), storage("b", StorageKind::Ceph, "c1", None));
        let far = storage("far", StorageKind::Ceph, "c2", None);
        let (x, y) = (Reach { ceph: Some("x"), mds: &[] }, Reach { ceph: Some("y"), mds: &[] });
        assert!(one((&a, &x, "ceph://rbd/i"), (&b, &y, "ceph://rbd/i")), "hosts open both by one ceph.conf");
        assert!(one((&a, &x, "ceph://rbd/i"), (&far, &x, "ceph://rbd/i")), "the controller reaches both by one");
        assert!(!one((&a, &x, "ceph://rbd/i"), (&far, &y, "ceph://rbd/i")));
        assert!(!one((&a, &x, "ceph://rbd/i"), (&b, &x, "ceph://rbd/j")));
        assert!(!one((&a, &x, "ceph://rbd/i"), (&b, &x, "ceph://ssd/i")));
    }

    #[test]
    fn both_spellings_of_a_zbs_volume_are_one() {
        let (a, b) = (storage("a", StorageKind::Zbs, "c1", None), storage("b", StorageKind::Zbs, "c1", None));
        let (one_mds, more) = (["http://m:1".to_owned()], ["http://n:1".to_owned(), "http://m:1".to_owned()]);
        let (x, y) = (Reach { ceph: None, mds: &one_mds }, Reach { ceph: None, mds: &more });
        assert!(one((&a, &x, "zbs://lp/v1"), (&b, &y, "cbd:pp/lp/v1")));
        assert!(!one((&a, &x, "zbs://lp/v1"), (&a, &x, "cbd:pp/lp/v2")));
        assert!(!one((&a, &x, "zbs://lp/v1"), (&a, &x, "zbs://lp/v1@s")));
    }

    #[test]
    fn a_file_is_one_behind_a_target_and_beside_it_however_its_directory_is_written() {
        let none = Reach::default();
        let vhost = storage("v", StorageKind::Vhost, "c1", Some("/srv/volumes"));
        let dir = storage("d", StorageKind::Dir, "c1", Some("/srv//./volumes/"));
        assert!(one((&vhost, &none, "vhost://data"), (&dir, &none, "dir://data.raw")));
        assert!(!one((&vhost, &none, "vhost://data"), (&dir, &none, "dir://data")));
        let own = storage("o", StorageKind::Vhost, "c1", None);
        assert!(!one((&own, &none, "vhost://data"), (&vhost, &none, "vhost://data")));
        let far = storage("f", StorageKind::Dir, "c2", Some("/srv/volumes"));
        assert!(!one((&far, &none, "dir://data.raw"), (&dir, &none, "dir://data.raw")), "other hosts, other files");
    }

    #[test]
    fn a_ceph_conf_is_known_by_its_fsid() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            std::fs::write(dir.path().join(name), text).unwrap();
            ceph_cluster(&dir.path().join(name))
        };
        let (a, b) = (write("a", "[global]\n fsid = ABC\n"), write("b", "[global]\nfsid=abc\nmon_host = x\n"));
        assert_eq!((a.as_str(), &a), ("abc", &b));
        assert_ne!(write("c", "[global]\n"), write("d", "[global]\n"));
    }
}
