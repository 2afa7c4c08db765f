//! The metrics of the controller: every metric with its meaning, and the gauges of the current state.
//!
//! Invariants: names follow Prometheus' conventions (unit and `_total` as suffixes); every metric in [`ALL`] is
//! measured, and every measured metric is in it (tested); labels take few values, never a host's or a VM's name, of
//! which there may be ten thousand.

use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusRecorder};
use ringfence_messages::{
    ProtocolStatus,
    ha::HaReply,
    host::{HostInventory, HostStatus},
    storage::{HostProtocolRef, StorageHostRef},
    vm::{VmInventory, VmState},
};

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A counter.
    Counter,
    /// A gauge.
    Gauge,
    /// A histogram of durations.
    Seconds,
}

/// Name, kind and meaning of every metric.
pub const ALL: [(&str, Kind, &str); 40] = [
    ("ringfence_hosts", Kind::Gauge, "Hosts by status"),
    ("ringfence_hosts_in_maintenance", Kind::Gauge, "Hosts in maintenance"),
    ("ringfence_vms", Kind::Gauge, "VMs by state"),
    ("ringfence_vms_lost", Kind::Gauge, "VMs that should be running but are not, or may not be"),
    ("ringfence_storages_disconnected", Kind::Gauge, "Pairs of a host and a storage that are disconnected"),
    ("ringfence_protocols_failing", Kind::Gauge, "Protocols of a storage on a host whose last redeploy failed"),
    (
        "ringfence_storm_brakes",
        Kind::Gauge,
        "Clusters in which fencing is suspended because too many hosts are unreachable",
    ),
    ("ringfence_ping_seconds", Kind::Seconds, "Duration of pings, answered or not"),
    ("ringfence_ha_start_seconds", Kind::Seconds, "Duration of failovers, successful or not"),
    ("ringfence_fences_total", Kind::Counter, "Fence attempts by outcome; each is audited once"),
    ("ringfence_vm_intruders_total", Kind::Counter, "QEMUs found on a host where their VM does not belong, by phase"),
    (
        "ringfence_attestations_contradicted_total",
        Kind::Counter,
        "Attestations that a host is off which newer evidence contradicted",
    ),
    ("ringfence_storage_fence_renewals_total", Kind::Counter, "Storage fences that were re-applied, by reason"),
    (
        "ringfence_guests_continued_total",
        Kind::Counter,
        "Guests that lost a vhost target and continued, by on_target_loss = \"continue\"",
    ),
    ("ringfence_guests_reset_total", Kind::Counter, "Guests that were reset after the loss of their vhost target"),
    ("ringfence_redeploys_total", Kind::Counter, "Redeploys of a storage's protocol on a host, by outcome"),
    (
        "ringfence_invariant_violations_total",
        Kind::Counter,
        "Violations of invariants that were prevented, by invariant",
    ),
    (
        "ringfence_controller_behind",
        Kind::Gauge,
        "1 while a host has seen newer records than the journal: the controller does not act",
    ),
    ("ringfence_journal_backlog", Kind::Gauge, "Records that wait for their write to the journal"),
    ("ringfence_journal_append_failures_total", Kind::Counter, "Writes to the journal that failed"),
    (
        "ringfence_journal_facts_unconfirmed_total",
        Kind::Counter,
        "Events whose write to the journal is unconfirmed, by topic",
    ),
    ("ringfence_hook_delivered_total", Kind::Counter, "Records that a hook delivered, by hook"),
    (
        "ringfence_hook_given_up_total",
        Kind::Counter,
        "Records that a hook dropped because the receiver kept rejecting them, by hook",
    ),
    ("ringfence_hook_retries_total", Kind::Counter, "Failed deliveries that are retried, by hook"),
    ("ringfence_hook_lag_records", Kind::Gauge, "Records of the journal behind a hook's position, by hook"),
    ("ringfence_hook_waiting_seconds", Kind::Gauge, "Age of the record that a hook is delivering, 0 if none, by hook"),
    (
        "ringfence_certificate_expiry_timestamp_seconds",
        Kind::Gauge,
        "Expiry of the certificate in use, seconds of the Unix epoch, by owner; the earliest of several",
    ),
    ("ringfence_tls_refused_total", Kind::Counter, "Connections to the API rejected during the handshake, by reason"),
    (
        "ringfence_connections_sent_away_total",
        Kind::Counter,
        "Unauthenticated connections to the API that were closed for a newer one",
    ),
    ("ringfence_otlp_spans_sent_total", Kind::Counter, "Spans that the trace collector accepted"),
    (
        "ringfence_otlp_spans_dropped_total",
        Kind::Counter,
        "Spans that the trace collector rejected, or that exceeded the queue, by reason",
    ),
    ("ringfence_bus_messages_handled_total", Kind::Counter, "Messages that actors handled, by type"),
    ("ringfence_bus_messages_panicked_total", Kind::Counter, "Messages whose handler panicked, by type"),
    ("ringfence_bus_message_seconds_sum", Kind::Gauge, "Total time of handlers, by type of message"),
    ("ringfence_bus_dead_letters_total", Kind::Counter, "Messages that no actor handled, by type"),
    ("ringfence_bus_late_replies_total", Kind::Counter, "Replies after their deadline"),
    ("ringfence_bus_expired_total", Kind::Counter, "Messages whose deadline passed in the queue"),
    ("ringfence_bus_timeouts_total", Kind::Counter, "Requests without a reply before their deadline"),
    ("ringfence_bus_missed_events_total", Kind::Counter, "Events that a slow subscriber missed"),
    ("ringfence_bus_escalations_total", Kind::Counter, "Actors that were stopped after too many panics"),
];

/// Bounds of the buckets of [`Kind::Seconds`]: a ping takes milliseconds, a fence seconds, one fencing level up to
/// 100 s.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0];

/// A recorder for all metrics.
///
/// # Errors
/// Never: the buckets are not empty.
pub fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let builder = PrometheusBuilder::new().set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?;
    Ok(builder.build_recorder())
}

/// Registers the meanings with the current recorder.
pub fn describe() {
    for (name, kind, meaning) in ALL {
        match kind {
            Kind::Counter => describe_counter!(name, meaning),
            Kind::Gauge => describe_gauge!(name, meaning),
            Kind::Seconds => describe_histogram!(name, Unit::Seconds, meaning),
        }
    }
}

/// Sets the gauges of the current state.
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
    // Unknown is not zero.
    gauge!("ringfence_storm_brakes").set(ha.map_or(f64::NAN, |ha| count(ha.braked.len())));
}
