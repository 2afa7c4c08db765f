//! Rules broken on purpose, so that tests, simulator and model must fail: `make sabotage`.
//!
//! Invariant: without the feature `sabotage`, which no package has, [`on`] is `false` at compile time and every
//! broken path is removed. With it, the environment variable `RINGFENCE_SABOTAGE` selects one.

/// One broken rule. Each is a plausible mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Watchers that cannot be read count as none.
    UnknownWatchersAreNobody,
    /// A sibling host without a result counts as "dead".
    UnknownIsDead,
    /// "Still alive after the kill" counts as "killed".
    StillAliveIsKilled,
    /// An unreachable SSH server needs no storage fence.
    UnreachableIsDead,
    /// Watchers are not read again after the fence.
    NoSecondLook,
    /// Fences and starts are not recorded before they happen.
    NoIntent,
    /// Hosts forget epochs.
    ForgetEpoch,
    /// Hosts forget incarnations.
    ForgetIncarnation,
    /// The report "does not run here" does not void earlier start commands.
    NothingIsVoid,
    /// Start commands never expire.
    OrdersNeverVoid,
    /// A kill counts as proof although a start command may still be carried out.
    OrderedIsForgotten,
    /// A host that cannot be queried counts as "not running here".
    SilentIsClear,
    /// A VM that another program may have moved starts without a look at silent hosts.
    MovesUnseen,
    /// A VM found on another host is ignored.
    FoundElsewhereIgnored,
    /// A permit never expires.
    PermitNeverExpires,
    /// A stale leader continues.
    DeposedActs,
    /// Targets are redeployed on hosts in quarantine.
    HealTheFenced,
    /// One ping too few is skipped.
    SkipOffByOne,
    /// Backoff has no cap.
    NoCap,
    /// The storm brake never engages.
    NoStormBrake,
    /// A host returns to service before leftover VMs are killed.
    LiftBeforeClean,
    /// A storage fence is never removed.
    NeverLift,
    /// A storage fence that was removed from outside is not re-applied.
    NotPutBack,
    /// After a restart a fence is forgotten if its storage does not answer.
    ForgetFences,
    /// A successful fence is not audited.
    NoAudit,
    /// A drain stops VMs that no other host has room for.
    DrainAnyway,
    /// A drain stops all VMs of a host at the same time.
    DrainAtOnce,
    /// A VM stopped by a drain starts elsewhere at once.
    DrainUnwatched,
    /// A restart forgets which VMs a drain stopped and did not start.
    ForgetMoves,
    /// A claim replaces the hosts where the VM may run.
    ClaimReplacesPlace,
    /// A claim from a host of another cluster is accepted.
    OtherClusterBelieved,
    /// The process of a local user counts as a VM.
    StrangersAreVms,
    /// "Not running here" counts without full sight.
    BlindIsFull,
    /// A report of another machine counts for the host.
    OtherMachineCounts,
    /// "Not running here" counts although a watcher contradicts it.
    ContradictionIsDead,
    /// An attestation counts for every later outage.
    AttestationStays,
    /// A VM observed as stopped on an unreachable host is fenced past the storm brake.
    BrakeBypassed,
    /// VMs start before every host listed its processes.
    NoCensus,
    /// An intruder is left running.
    IntruderIgnored,
    /// Exports do not end with their VM.
    ExportsLive,
    /// An export without a QEMU does not count as a writer.
    ExportIsNothing,
    /// An aborted start is resumed when it comes up late.
    LateResume,
    /// A start that failed after the fence changes the VM's host.
    StartForgets,
    /// A QEMU that arrived by a migration waits for one for ever.
    IncomingForever,
    /// Text from outside is recorded without a limit.
    WordsUncut,
    /// A successful start resets the backoff at once.
    StartIsSuccess,
    /// A controller whose journal is behind continues.
    BehindActs,
    /// Records about hosts from before a restore count.
    BackupBelieved,
    /// Hosts in maintenance are not searched before a start.
    MaintenanceUnsearched,
    /// Exports by ZBS targets do not end with their QEMU.
    ZbsExportsLive,
    /// A blocklist entry without a record is ignored.
    EntriesIgnored,
}

/// Whether this one is selected.
#[cfg(feature = "sabotage")]
pub fn on(which: Sabotage) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("RINGFENCE_SABOTAGE").ok());
    CHOSEN.as_deref().is_some_and(|chosen| chosen == format!("{which:?}"))
}

/// Whether this one is selected: never.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn on(_: Sabotage) -> bool {
    false
}
