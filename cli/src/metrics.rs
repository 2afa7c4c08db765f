//! What the controller tells Prometheus: every metric with its meaning, and the gauges of what is.
//!
//! Invariants: names follow Prometheus' conventions (unit and `_total` as suffixes); what is named in [`ALL`] is measured
//! somewhere, and what is measured is in it (tested); labels take few values, never a host's or a VM's name: of those there
//! may be ten thousand.

use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use ringfence_messages::{
    ProtocolStatus,
    ha::HaReply,
    host::{HostInventory, HostStatus},
    storage::{HostProtocolRef, StorageHostRef},
    vm::{VmInventory, VmState},
};

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Is what is.
    Gauge,
    /// How often how long.
    Seconds,
}

/// Every metric: its name, kind and meaning.
pub const ALL: [(&str, Kind, &str); 39] = [
    ("ringfence_hosts", Kind::Gauge, "Hosts by status"),
    ("ringfence_hosts_in_maintenance", Kind::Gauge, "Hosts that an operator took out of service"),
    ("ringfence_vms", Kind::Gauge, "VMs by state"),
    ("ringfence_vms_lost", Kind::Gauge, "VMs that are to run and do not, or may not"),
    ("ringfence_storages_disconnected", Kind::Gauge, "Pairs of a host and a storage that the host does not reach"),
    ("ringfence_protocols_failing", Kind::Gauge, "Protocols of a storage on a host whose redeploys failed last"),
    (
        "ringfence_storm_brakes",
        Kind::Gauge,
        "Clusters in which nothing is fenced, because so many hosts are away at once",
    ),
    ("ringfence_ping_seconds", Kind::Seconds, "How long a host took to answer a ping, or not to"),
    (
        "ringfence_ha_start_seconds",
        Kind::Seconds,
        "How long it took to fence a VM and start it elsewhere, or to be refused",
    ),
    ("ringfence_fences_total", Kind::Counter, "Fence attempts by outcome; each is audited once"),
    ("ringfence_vm_intruders_total", Kind::Counter, "QEMUs of a VM that were seen where they do not belong, by phase"),
    ("ringfence_storage_fence_renewals_total", Kind::Counter, "Storage fences that were ordered again, by why"),
    (
        "ringfence_guests_continued_total",
        Kind::Counter,
        "Guests that lost a vhost target and went on, which on_target_loss = \"continue\" allows",
    ),
    ("ringfence_guests_reset_total", Kind::Counter, "Guests that were reset because their vhost target was lost"),
    ("ringfence_redeploys_total", Kind::Counter, "Redeploys of a storage's protocol on a host, by outcome"),
    (
        "ringfence_invariant_violations_total",
        Kind::Counter,
        "Rules that were about to be broken, by rule; each was refused",
    ),
    (
        "ringfence_controller_behind",
        Kind::Gauge,
        "1 while a host has heard of more than the journal knows: nothing is done",
    ),
    ("ringfence_journal_backlog", Kind::Gauge, "Records that wait to be written to the journal"),
    ("ringfence_journal_append_failures_total", Kind::Counter, "Writes to the journal that failed"),
    (
        "ringfence_journal_facts_unconfirmed_total",
        Kind::Counter,
        "Facts of which it is not known whether they were written, by topic",
    ),
    ("ringfence_hook_delivered_total", Kind::Counter, "Records that a hook delivered, by hook"),
    (
        "ringfence_hook_given_up_total",
        Kind::Counter,
        "Records that a hook went on without, since the receiver kept refusing, by hook",
    ),
    (
        "ringfence_hook_retries_total",
        Kind::Counter,
        "Tries to deliver a record that failed and are made again, by hook",
    ),
    ("ringfence_hook_lag_records", Kind::Gauge, "Records of the journal that a hook is not done with, by hook"),
    (
        "ringfence_hook_waiting_seconds",
        Kind::Gauge,
        "Age of the record that a hook is trying to deliver, 0 if none waits, by hook",
    ),
    (
        "ringfence_certificate_expiry_timestamp_seconds",
        Kind::Gauge,
        "When the certificate in use ends, seconds of the Unix epoch, by whose; of several the first to end",
    ),
    ("ringfence_tls_refused_total", Kind::Counter, "Connections to the API that were refused before a request, by why"),
    (
        "ringfence_connections_sent_away_total",
        Kind::Counter,
        "Connections to the API that showed nothing and were closed for a newer one",
    ),
    ("ringfence_otlp_spans_sent_total", Kind::Counter, "Spans that the collector of traces took"),
    (
        "ringfence_otlp_spans_dropped_total",
        Kind::Counter,
        "Spans that the collector did not take, or that were too many to wait for it, by why",
    ),
    ("ringfence_bus_messages_handled_total", Kind::Counter, "Messages that actors handled, by type"),
    ("ringfence_bus_messages_panicked_total", Kind::Counter, "Messages whose handler panicked, by type"),
    ("ringfence_bus_message_seconds_sum", Kind::Gauge, "Time that handlers took, by type of message"),
    ("ringfence_bus_dead_letters_total", Kind::Counter, "Messages that nobody could take, by type"),
    ("ringfence_bus_late_replies_total", Kind::Counter, "Replies that came after their deadline"),
    ("ringfence_bus_expired_total", Kind::Counter, "Messages whose deadline had passed before their turn came"),
    ("ringfence_bus_timeouts_total", Kind::Counter, "Asks that were not answered in time"),
    ("ringfence_bus_missed_events_total", Kind::Counter, "Events that a subscriber was too slow for"),
    ("ringfence_bus_escalations_total", Kind::Counter, "Actors that were given up after too many panics"),
];

/// Bounds of the buckets of [`Kind::Seconds`]: a ping takes milliseconds, a fence seconds, a level of the ladder up to 100 s.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// A recorder that knows them all.
///
/// # Errors
/// Never: the buckets are not empty.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?;
    Ok(builder.build_recorder())
}

/// Says what they mean, to the recorder in force.
pub fn describe() {
    for (name, kind, meaning) in ALL {
        match kind {
            Kind::Counter => describe_counter!(name, meaning),
            Kind::Gauge => describe_gauge!(name, meaning),
            Kind::Seconds => describe_histogram!(name, Unit::Seconds, meaning),
        }
    }
}

/// Sets the gauges of what is.
pub fn update_gauges(
    hosts: &[HostInventory],
    vms: &[VmInventory],
    storages: &[StorageHostRef],
    refs: &[HostProtocolRef],
    ha: Option<&HaReply>,
) {
    let count = |n: usize| n as f64;
    for (status, name) in [
        (HostStatus::Connected, "Connected"),
        (HostStatus::Connecting, "Connecting"),
        (HostStatus::Disconnected, "Disconnected"),
    ] {
        gauge!("ringfence_hosts", "status" => name)
            .set(count(hosts.iter().filter(|host| host.status == status).count()));
    }
    let maintained = hosts.iter().filter(|host| host.state == ringfence_messages::host::HostState::Maintenance);
    gauge!("ringfence_hosts_in_maintenance").set(count(maintained.count()));
    for (state, name) in [
        (VmState::Stopped, "Stopped"),
        (VmState::Starting, "Starting"),
        (VmState::Running, "Running"),
        (VmState::Stopping, "Stopping"),
        (VmState::Unknown, "Unknown"),
    ] {
        gauge!("ringfence_vms", "state" => name).set(count(vms.iter().filter(|vm| vm.state == state).count()));
    }
    let lost = vms.iter().filter(|vm| vm.wanted && vm.state != VmState::Running);
    gauge!("ringfence_vms_lost").set(count(lost.count()));
    let disconnected = storages.iter().filter(|of| of.status == Some(ProtocolStatus::Disconnected));
    gauge!("ringfence_storages_disconnected").set(count(disconnected.count()));
    gauge!("ringfence_protocols_failing").set(count(refs.iter().filter(|of| of.redeploys > 0).count()));
    // What is not known is not zero.
    gauge!("ringfence_storm_brakes").set(ha.map_or(f64::NAN, |ha| count(ha.braked.len())));
}
