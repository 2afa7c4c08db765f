//! What is declared is what runs: addresses that are not one host's, disks that are declared twice or not at all.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};

use ringfence_cli::config::{self, Config};
use ringfence_server::config::ControllerConfig;
use ringfence_service::config_file::Problems;

/// Read as a check does: whoever owns the checkout.
fn load(path: &Path) -> Result<ControllerConfig, Problems> {
    match config::load(path)? {
        Config::Controller(config) => Ok(*config),
        Config::Agent(_) => panic!("{} is an agent's", path.display()),
    }
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(name)
}

/// Every mistake of a config, a line each; none if it is fine.
fn mistakes(path: &Path) -> Vec<String> {
    load(path).err().map(|problems| problems.lines()).unwrap_or_default()
}

/// `text` as a config, with `files` beside it.
fn mistakes_of(text: &str, files: &[(&str, &str)]) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let path = dir.path().join("c.toml");
    std::fs::write(&path, text).unwrap();
    mistakes(&path)
}

/// Each of `expected` is in one mistake, and there is no other mistake.
fn assert_told(told: &[String], expected: &[&str]) {
    for part in expected {
        assert!(told.iter().any(|line| line.contains(part)), "{part:?} is missing in {told:#?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
}

#[test]
fn each_of_many_mistakes_is_told_with_both_places() {
    assert_told(
        &mistakes(&case("dup.toml")),
        &[
            "0.0.0.0 is the unspecified address",
            "::ffff:10.77.0.11 is an IPv4-mapped IPv6 address, which no storage reports for its clients: write \
             10.77.0.11",
            "fe80::1 is link-local",
            "224.0.0.1 is a multicast address",
            "10.77.0.11 is also the management address of host-a (",
            "storage_ips = [\"127.0.0.1\", \"0.0.0.0\", \"::ffff:10.77.0.11\", \"fe80::1\", \"224.0.0.1\"]: 127.0.0.1 \
             is loopback",
            "storage_ips = [\"127.0.0.1\"]: 127.0.0.1 is loopback",
            "`-drive file=rbd:rbd/data7,if=virtio` may open a disk that is neither watched",
            "`-readconfig /etc/x.cfg` may open a disk",
            "ceph://rbd/disk7 is already a volume of vm1 (",
            "cbd:pp/lp/v1 is already a volume of vm1 (",
            "dir://data.raw is already a volume of vm1 (",
        ],
    );
    let places = load(&case("dup.toml")).unwrap_err().to_string();
    assert!(places.contains("dup.toml:53)"), "the first disk7 stands in line 53: {places}");
}

#[test]
fn a_well_declared_cluster_is_fine_and_a_shared_management_address_is_not() {
    assert_told(&mistakes(&case("good.toml")), &[]);
    assert_told(&mistakes(&case("same-management.toml")), &["10.0.0.12 is also the management address of host-a ("]);
}

fn good() -> String {
    std::fs::read_to_string(case("good.toml")).unwrap()
}

#[test]
fn addresses_of_two_hosts_are_refused_beyond_loopback() {
    let shared = good().replace("10.1.0.12", "10.1.0.11");
    assert_told(&mistakes_of(&shared, &[]), &["10.1.0.11 is also in storage_ips of host-a ("]);
    let others = good().replace("[\"10.1.0.12\"]", "[\"10.0.0.11\"]");
    assert_told(&mistakes_of(&others, &[]), &["10.0.0.11 is the management address of host-a ("]);
    let twice = good().replace("[\"10.1.0.12\"]", "[\"10.1.0.12\", \"10.1.0.12\"]");
    assert_told(&mistakes_of(&twice, &[]), &["10.1.0.12 is listed twice"]);
    // Behind one address, told apart by the port.
    let ports = good().replace("management_ip = \"10.0.0.12\"", "management_ip = \"10.0.0.11\"\nssh_port = 2222");
    assert_told(&mistakes_of(&ports, &[]), &[]);
    let half = good().replace("management_ip = \"10.0.0.12\"", "management_ip = \"127.0.0.1\"");
    assert_told(&mistakes_of(&half, &[]), &["127.0.0.1 is loopback: a sibling host"]);
    let one_agent = good().replace("http://10.0.0.12:7070", "http://10.0.0.11:7070");
    assert_told(&mistakes_of(&one_agent, &[]), &["host-b has the agent of host-a ("]);
    // A lab on one machine: told apart by the agents' ports alone, as the demo is.
    let lab = good()
        .replace("management_ip = \"10.0.0.11\"", "management_ip = \"127.0.0.1\"")
        .replace("management_ip = \"10.0.0.12\"", "management_ip = \"127.0.0.1\"");
    assert_told(&mistakes_of(&lab, &[]), &[]);
    let fenced = lab.replace("10.1.0.11", "127.0.0.1").replace("10.1.0.12", "127.0.0.1");
    let vhost = fenced.replace("kind = \"ceph\"", "kind = \"vhost\"").replace("ceph://vms/vm1", "vhost://vm1");
    assert_told(&mistakes_of(&fenced, &[]), &["127.0.0.1 is loopback"; 2]);
    assert_told(&mistakes_of(&vhost, &[]), &[]);
}

#[test]
fn watchers_that_are_allowed_are_nobodys_hosts() {
    let with = |allowed: &str| {
        good().replace("user = \"ringfence\"", &format!("user = \"ringfence\"\nwatchers_allowed = [{allowed}]"))
    };
    let path = tempfile::tempdir().unwrap();
    let file = path.path().join("c.toml");
    std::fs::write(&file, with("\"10.9.0.99\"")).unwrap();
    let config = load(&file).unwrap();
    assert_eq!(config.inventory.storages[0].watchers_allowed, ["10.9.0.99".parse::<std::net::IpAddr>().unwrap()]);
    assert_told(&mistakes_of(&with("\"10.1.0.11\""), &[]), &["10.1.0.11 is an address of host-a"]);
    assert_told(
        &mistakes_of(&with("\"0.0.0.0\", \"x\""), &[]),
        &["0.0.0.0 is the unspecified", "\"x\" is not an IP address"],
    );
    let vhost =
        with("\"10.9.0.99\"").replace("kind = \"ceph\"", "kind = \"vhost\"").replace("ceph://vms/vm1", "vhost://vm1");
    assert_told(&mistakes_of(&vhost, &[]), &["a storage of kind Vhost has no watchers"]);
}

#[test]
fn uuids_that_would_share_a_folder_on_a_host_are_refused() {
    let storages = |other: &str| {
        let storage = |name: &str, uuid: &str, dir: &str| {
            format!(
                "[[storage]]\nname = \"{name}\"\nuuid = \"{uuid}\"\nkind = \"vhost\"\nclusters = [\"c1\"]\n\
                 dir = \"{dir}\"\n"
            )
        };
        good() + &storage("nvme-a", "019ab0c0-1111-7aaa-8000-000000000001", "/a") + &storage("nvme-b", other, "/b")
    };
    assert_told(
        &mistakes_of(&storages("019ab0c0-2222-7bbb-8000-000000000002"), &[]),
        &["the same first 8 digits as storage nvme-a ("],
    );
    assert_told(&mistakes_of(&storages("019ab0c1-2222-7bbb-8000-000000000002"), &[]), &[]);
    let vms = |other: &str| {
        let vm = |name: &str, uuid: &str| {
            format!(
                "[[vm]]\nname = \"{name}\"\nuuid = \"{uuid}\"\ncluster = \"c1\"\nmemory_mib = 16\n[[vm.volume]]\n\
                 storage = \"ceph-1\"\ninstall_path = \"ceph://vms/{name}\"\nroot = true\n"
            )
        };
        good() + &vm("a", "019ab0c0-1111-7aaa-8000-000000000001") + &vm("b", other)
    };
    assert_told(
        &mistakes_of(&vms("019ab0c0-1111-7bbb-8000-000000000002"), &[]),
        &["the same first 12 digits as VM a ("],
    );
    assert_told(&mistakes_of(&vms("019ab0c0-1112-7bbb-8000-000000000002"), &[]), &[]);
}

/// The VM of the domains in `cases/libvirt`, with these images.
fn domain(images: &[&str], xml: &str) -> Vec<String> {
    let mut text = "[controller]\nstate_dir = \"state\"\n[[cluster]]\nname = \"c1\"\n[[host]]\nname = \"host-a\"\n\
        cluster = \"c1\"\n\
        management_ip = \"10.0.0.11\"\nstorage_ips = [\"10.1.0.11\"]\nagent = \"http://10.0.0.11:7070\"\n"
        .to_owned();
    for pool in ["vms", "volumes"] {
        text += &format!(
            "[[storage]]\nname = \"{pool}\"\nkind = \"ceph\"\nclusters = [\"c1\"]\npool = \"{pool}\"\nconf = \"c\"\n\
             user = \"r\"\n"
        );
    }
    text += "[[vm]]\nname = \"instance-0000002a\"\nuuid = \"5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01\"\ncluster = \"c1\"\n\
             memory_mib = 4096\n";
    for (n, image) in images.iter().enumerate() {
        let pool = image.split('/').next().unwrap();
        text += &format!("[[vm.volume]]\nstorage = \"{pool}\"\ninstall_path = \"ceph://{image}\"\nroot = {}\n", n == 0);
    }
    mistakes_of(&(text + "[vm.libvirt]\nxml = \"d.xml\"\n"), &[("d.xml", xml)])
}

#[test]
fn a_domain_has_the_disks_that_are_declared_and_no_other() {
    let read = |name: &str| std::fs::read_to_string(case("libvirt").join(name)).unwrap();
    let (root, data) =
        ("vms/5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01_disk", "volumes/volume-0b1f0c9e-7a34-4a7c-9b1e-0c1de0a11c99");
    assert_told(&domain(&[root], &read("one-disk.xml")), &[]);
    assert_told(&domain(&[root, data], &read("nova.xml")), &[]);
    assert_told(
        &domain(&[root], &read("nova.xml")),
        &["disk vdb (the RBD image volumes/volume-0b1f0c9e-7a34-4a7c-9b1e-0c1de0a11c99) is writable but not a volume"],
    );
    assert_told(
        &domain(&[root, data], &read("one-disk.xml")),
        &["the domain has no disk for ceph://volumes/volume-0b1f0c9e"],
    );
    assert_told(
        &domain(&[root], &read("local-disk-too.xml")),
        &["disk vdc (/var/lib/libvirt/images/local.qcow2) is writable"],
    );
    assert_told(
        &domain(&[root, data], &read("right-uuid-only-in-a-comment.xml")),
        &["its uuid is \"11111111-2222-4333-8444-555555555555\" instead of 5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01"],
    );
    assert_told(
        &domain(&["vms/another"], &read("one-disk.xml")),
        &[
            "disk vda (the RBD image vms/5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01_disk)",
            "the domain has no disk for ceph://vms/another",
        ],
    );
    let filled = read("one-disk.xml")
        .replacen("<uuid>5d1f0c9e-7a34-4a7c-9b1e-0c1de0a11c01</uuid>", "<uuid>{uuid}</uuid>", 1)
        .replacen("<name>instance-0000002a</name>", "<name>{vm}</name>", 1);
    assert_told(&domain(&[root], &filled), &[]);
    assert_told(&domain(&[root], "<domain"), &["it is no XML"]);
}
