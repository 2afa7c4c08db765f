//! Ways to break the rules on purpose, to see that tests, simulator and model notice: `make sabotage`.
//!
//! Invariant: without the feature `sabotage`, which nothing that ships has, [`on`] is `false` at compile time and every
//! broken path is gone. With it, the environment's `RINGFENCE_SABOTAGE` chooses one.

/// One way to break a rule. Each is a mistake that somebody could make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// A failed question for watchers counts as "nobody".
    UnknownWatchersAreNobody,
    /// A sibling that cannot tell counts as "dead".
    UnknownIsDead,
    /// "Still alive after the kill" counts as "killed".
    StillAliveIsKilled,
    /// "SSH cannot reach it" needs no storage fence.
    UnreachableIsDead,
    /// Watchers are not looked at again after the fence.
    NoSecondLook,
    /// Fences and starts are not recorded before they are done.
    NoIntent,
    /// Hosts do not remember epochs.
    ForgetEpoch,
    /// Hosts do not remember incarnations.
    ForgetIncarnation,
    /// "It does not run here" does not void the orders given so far.
    NothingIsVoid,
    /// Orders have no time after which they are void.
    OrdersNeverVoid,
    /// A kill is proof though an order may still be carried out.
    OrderedIsForgotten,
    /// A host that cannot be asked counts as one that says "not here".
    SilentIsClear,
    /// Where else the VM is found does not matter.
    FoundElsewhereIgnored,
    /// A permit never expires.
    PermitNeverExpires,
    /// A deposed controller goes on.
    DeposedActs,
    /// Targets are redeployed on hosts in quarantine.
    HealTheFenced,
    /// One ping too few is skipped.
    SkipOffByOne,
    /// Backoff has no cap.
    NoCap,
    /// The storm brake never engages.
    NoStormBrake,
    /// A host is let in again before what is left on it is killed.
    LiftBeforeClean,
    /// A storage fence is never lifted.
    NeverLift,
    /// A storage fence that somebody removed is not put back.
    NotPutBack,
    /// After a restart a fence whose storage cannot be asked is forgotten.
    ForgetFences,
    /// A fence that succeeds is not audited.
    NoAudit,
    /// A drain stops VMs that have nowhere to go.
    DrainAnyway,
    /// A drain stops all VMs of a host at once.
    DrainAtOnce,
    /// A VM that a drain stopped is started elsewhere at once.
    DrainUnwatched,
    /// A restart forgets which VMs a drain stopped and did not start.
    ForgetMoves,
    /// Where a VM is seen replaces where it may run.
    ClaimReplacesPlace,
    /// What a host of another cluster shows is believed.
    OtherClusterBelieved,
    /// A local user's process is a VM.
    StrangersAreVms,
    /// "Not there" counts whoever looked.
    BlindIsFull,
    /// What another machine says counts for the one that is meant.
    OtherMachineCounts,
    /// "Not there" counts though a watch says otherwise.
    ContradictionIsDead,
    /// What a human attested counts for every later outage too.
    AttestationStays,
    /// A VM that is believed stopped on a host that does not answer is fenced past the storm brake.
    BrakeBypassed,
    /// VMs are started before every host was heard.
    NoCensus,
    /// What nobody ordered is left to run.
    IntruderIgnored,
    /// Exports are not ended with their VM.
    ExportsLive,
    /// An export without a QEMU is no writer.
    ExportIsNothing,
    /// A start that was given up is resumed when it comes up late.
    LateResume,
    /// A start that failed after the fence moves the VM's place.
    StartForgets,
    /// A QEMU that came by a migration waits for one for ever.
    IncomingForever,
    /// Words from outside are recorded as they come.
    WordsUncut,
    /// A start that worked ends the backoff at once.
    StartIsSuccess,
    /// A controller whose journal is behind what hosts have heard goes on.
    BehindActs,
    /// What a journal says of hosts from before it was restored counts.
    BackupBelieved,
    /// What the blocklist has and no record explains is left there.
    EntriesIgnored,
}

/// Whether this one was chosen.
#[cfg(feature = "sabotage")]
pub fn on(which: Sabotage) -> bool {
    static CHOSEN: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("RINGFENCE_SABOTAGE").ok());
    CHOSEN.as_deref().is_some_and(|chosen| chosen == format!("{which:?}"))
}

/// Whether this one was chosen: never.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn on(_: Sabotage) -> bool {
    false
}
