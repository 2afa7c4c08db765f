//! The steps of a redeploy, and what their results mean.
//!
//! Purpose: the order of the steps as data.
//! Invariants: a failed best-effort step does not stop the flow; a failed required step ends it. Every step that ran
//! is reported, in order.
//! Alternatives considered: `deploy-vhost-target` as best effort for ZBS. It is the last step of a redeploy, so
//! "failed" is the truth and nothing is lost.

use std::time::Duration;

use ringfence_messages::{
    ErrorCode, Protocol, Result, recovery::RedeployPhase, storage::DeployStep, storage::StorageKind,
};

/// One step of a deploy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// ZBS: the MDS installs its client on the host.
    DeployClient,
    /// ZBS: the MDS updates the dependencies of its client on the host.
    UpdateHostDependency,
    /// The host's agent prepares hugepages and docker.
    PrepareVhostTargetEnv,
    /// The host's agent (kind `vhost`) or the MDS (kind `zbs`) starts the vhost target.
    DeployVhostTarget,
}

impl Step {
    /// Name in the journal.
    pub const fn name(self) -> &'static str {
        match self {
            Step::DeployClient => "deploy-client",
            Step::UpdateHostDependency => "update-host-client-dependency",
            Step::PrepareVhostTargetEnv => "prepare-vhost-target-env",
            Step::DeployVhostTarget => "deploy-vhost-target",
        }
    }

    /// Whether the flow continues when the step fails.
    pub const fn best_effort(self) -> bool {
        matches!(self, Step::PrepareVhostTargetEnv)
    }

    /// Limit of the step. Too low: a slow host is never redeployed. Too high: a hung host keeps its key busy.
    pub const fn timeout(self) -> Duration {
        Duration::from_secs(match self {
            Step::DeployClient | Step::UpdateHostDependency => 60,
            // installing docker and compacting memory are slow
            Step::PrepareVhostTargetEnv => 60,
            // 40 attempts of 0.5 s for the socket, after the start
            Step::DeployVhostTarget => 30,
        })
    }
}

/// Limit of a whole deploy: the sum of its steps' limits and a margin for the journal.
pub const DEPLOY_DEADLINE: Duration = Duration::from_secs(60 + 60 + 60 + 30 + 10);

/// The steps that deploy `protocol` of a storage of `kind` on a host; empty if there is nothing to deploy.
pub fn steps(kind: StorageKind, protocol: Protocol) -> &'static [Step] {
    use Step::*;
    match (kind, protocol) {
        (StorageKind::Vhost, Protocol::Vhost) => &[PrepareVhostTargetEnv, DeployVhostTarget],
        (StorageKind::Zbs, Protocol::Vhost) => {
            &[DeployClient, UpdateHostDependency, PrepareVhostTargetEnv, DeployVhostTarget]
        }
        (StorageKind::Zbs, _) => &[DeployClient, UpdateHostDependency],
        _ => &[],
    }
}

/// A deploy in progress.
#[derive(Debug)]
pub struct Flow {
    steps: &'static [Step],
    done: Vec<DeployStep>,
    failed: bool,
}

/// Next action of a deploy.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Run this step and call [`Flow::ended`].
    Run(Step),
    /// The deploy has ended.
    Finished(RedeployPhase),
}

impl Flow {
    /// The deploy of `protocol` of a storage of `kind`.
    pub fn new(kind: StorageKind, protocol: Protocol) -> Flow {
        Flow { steps: steps(kind, protocol), done: Vec::new(), failed: false }
    }

    /// The next action.
    pub fn next(&self) -> Next {
        match self.steps.get(self.done.len()) {
            Some(step) if !self.failed => Next::Run(*step),
            _ if self.failed => Next::Finished(RedeployPhase::Failed),
            _ => Next::Finished(RedeployPhase::Done),
        }
    }

    /// Handles the result of the step that [`Flow::next`] returned; `Ok` has notes. Returns the report of a failed
    /// best-effort step, for the audit.
    pub fn ended(&mut self, step: Step, result: Result<String>) -> Option<DeployStep> {
        debug_assert_eq!(self.next(), Next::Run(step), "a step ended that was not requested");
        let (error, note): (Option<ErrorCode>, String) = match result {
            Ok(note) => (None, note),
            Err(error) => (Some(error), String::new()),
        };
        self.failed = error.is_some() && !step.best_effort();
        let report = DeployStep { name: step.name().to_owned(), error, note };
        self.done.push(report.clone());
        (report.error.is_some() && step.best_effort()).then_some(report)
    }

    /// The reports of all steps that ran.
    pub fn into_steps(self) -> Vec<DeployStep> {
        self.done
    }
}

#[cfg(test)]
mod tests {
    use ringfence_messages::Code;

    use super::*;

    fn error() -> ErrorCode {
        ErrorCode::new(Code::OPERATION, "no")
    }

    fn run(mut flow: Flow, fails: &[Step]) -> (Vec<String>, RedeployPhase, usize) {
        let mut warned = 0;
        loop {
            match flow.next() {
                Next::Run(step) => {
                    let result = if fails.contains(&step) { Err(error()) } else { Ok(String::new()) };
                    warned += usize::from(flow.ended(step, result).is_some());
                }
                Next::Finished(phase) => {
                    return (flow.into_steps().into_iter().map(|s| s.name).collect(), phase, warned);
                }
            }
        }
    }

    #[test]
    fn failed_preparation_does_not_stop_deploy() {
        let flow = Flow::new(StorageKind::Vhost, Protocol::Vhost);
        let (steps, phase, warned) = run(flow, &[Step::PrepareVhostTargetEnv]);
        assert_eq!(steps, ["prepare-vhost-target-env", "deploy-vhost-target"]);
        assert_eq!((phase, warned), (RedeployPhase::Done, 1));
    }

    #[test]
    fn failed_required_step_ends_deploy() {
        let flow = Flow::new(StorageKind::Zbs, Protocol::Vhost);
        let (steps, phase, warned) = run(flow, &[Step::UpdateHostDependency]);
        assert_eq!(steps, ["deploy-client", "update-host-client-dependency"]);
        assert_eq!((phase, warned), (RedeployPhase::Failed, 0));
    }

    #[test]
    fn zbs_deploy_runs_steps_in_order() {
        let (steps, phase, _) = run(Flow::new(StorageKind::Zbs, Protocol::Vhost), &[]);
        let order =
            ["deploy-client", "update-host-client-dependency", "prepare-vhost-target-env", "deploy-vhost-target"];
        assert_eq!((steps.as_slice(), phase), (order.map(String::from).as_slice(), RedeployPhase::Done));
        assert_eq!(run(Flow::new(StorageKind::Zbs, Protocol::Cbd), &[]).0.len(), 2);
    }

    #[test]
    fn failed_last_step_fails_redeploy() {
        let (_, phase, _) = run(Flow::new(StorageKind::Vhost, Protocol::Vhost), &[Step::DeployVhostTarget]);
        assert_eq!(phase, RedeployPhase::Failed);
    }

    #[test]
    fn deadline_covers_longest_deploy() {
        for kind in [StorageKind::Vhost, StorageKind::Zbs] {
            for protocol in Protocol::ALL {
                let sum: Duration = steps(kind, protocol).iter().map(|s| s.timeout()).sum();
                assert!(sum < DEPLOY_DEADLINE, "{kind:?} {protocol} may take {sum:?}");
            }
        }
    }
}
