//! Runs a plan: controllers over the world's ports, in virtual time, on one thread.
//!
//! A controller is the same assembly as in `ringfence serve`. It has its own task set: dropping the set is `kill -9` in
//! the middle of a call, not polling it is a frozen process.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use ringfence::{Address, Bus, Kind};
use ringfence_actors::{assembly::Assembly, inventory::Settings, restore};
use ringfence_messages::{
    HostId, VmId,
    ha::{ConfirmHostFencedMsg, HaStartVmInstanceMsg},
    host::{ChangeHostStateMsg, HostAction},
    vm::{StartVmMsg, StopVmMsg},
};
use tokio::task::LocalSet;

use crate::{
    check::Violation,
    fault::{Act, StepKind},
    plan::Plan,
    world::World,
};

/// The result of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The broken rules, oldest first.
    pub violations: Vec<Violation>,
    /// The log, one line per event: time in seconds, text.
    pub log: Vec<String>,
    /// Counts of the run.
    pub counts: Counts,
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Simulated time.
    pub simulated: Duration,
    /// Number of fence attempts.
    pub fences: u32,
    /// Number of VM starts.
    pub starts: u32,
    /// Number of redeploys.
    pub redeploys: u32,
}

/// Time from the first round of pings to the first starts of VMs.
const WARM_UP: Duration = Duration::from_secs(5);

/// Time between the first starts on one host, which starts one VM after another.
const START_EVERY: Duration = Duration::from_secs(1);

/// Time between checks of the rule `live` at the end.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Runs a plan to its end or to the first broken rule.
///
/// # Panics
/// If this thread already runs a tokio runtime.
pub fn run(plan: &Plan) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime on this thread");
    runtime.block_on(async {
        let world = World::new(plan.seed, plan.inventory.clone(), plan.host_memory_mib);
        let stage = Stage { world: world.clone(), settings: plan.settings, controllers: Rc::default() };
        stage.play(direct(&stage, plan)).await;
        let log = world.log();
        let mut state = world.state();
        let counts = Counts {
            simulated: state.now,
            fences: state.checks.fences,
            starts: state.checks.restarts,
            redeploys: state.checks.redeployed,
        };
        Outcome { violations: std::mem::take(&mut state.checks.violations), log, counts }
    })
}

/// The world and the controllers in it.
pub(crate) struct Stage {
    pub(crate) world: Arc<World>,
    settings: Settings,
    controllers: Rc<RefCell<Vec<Controller>>>,
}

struct Controller {
    n: usize,
    tasks: LocalSet,
    bus: Bus,
}

/// The operator's `serve --restored`: repeated with the next controller if this one ends before it is recorded.
struct Restores {
    world: Arc<World>,
    recorded: bool,
}

impl Restores {
    fn take(world: &Arc<World>) -> Option<Restores> {
        let declared = std::mem::take(&mut world.state().declared);
        declared.then(|| Restores { world: world.clone(), recorded: false })
    }

    fn succeeded(mut self) {
        self.recorded = true;
    }
}

impl Drop for Restores {
    fn drop(&mut self) {
        if !self.recorded {
            self.world.state().declared = true;
        }
    }
}

impl Stage {
    /// Polls the director and the controllers until the director is done.
    async fn play(&self, director: impl Future<Output = ()>) {
        let mut director = pin!(director);
        loop {
            let moved = pin!(self.world.until_moved());
            let mut moved = moved;
            let done = poll_fn(|cx| {
                if moved.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                self.poll_controllers(cx);
                director.as_mut().poll(cx).map(|()| true)
            });
            if done.await {
                return;
            }
        }
    }

    fn poll_controllers(&self, cx: &mut Context<'_>) {
        let wanted = self.world.state().take_controllers_wanted();
        for _ in 0..wanted {
            self.start_controller();
        }
        let mut controllers = self.controllers.borrow_mut();
        controllers.retain_mut(|controller| {
            let (alive, frozen) = {
                let state = self.world.state();
                let simulated = &state.controllers[controller.n];
                (simulated.alive, simulated.freezes > 0)
            };
            if alive && !frozen {
                let _ = Pin::new(&mut controller.tasks).poll(cx);
            }
            // Dropped: the calls in progress never complete.
            alive
        });
    }

    fn start_controller(&self) {
        let (n, ports) = self.world.controller();
        let (tasks, bus) = (LocalSet::new(), Bus::new());
        let (world, settings, inventory) = (self.world.clone(), self.settings, self.world.inventory.clone());
        let (on, restores) = (bus.clone(), Restores::take(&world));
        tasks.spawn_local(async move {
            let started = async {
                if let Some(restores) = restores {
                    // No other controller runs: the operator verified that.
                    world.state().leadership.leader = Some(n);
                    let hosts = inventory.hosts.iter().map(|host| (host.id, host.name.clone())).collect();
                    restore::restore(&ports, hosts).await?;
                    restores.succeeded();
                }
                Assembly::start(on, inventory, settings, ports).await.map(drop)
            };
            if let Err(error) = started.await {
                // Restarted, as by a service manager.
                let mut state = world.state();
                state.log(format_args!("controller {n} does not start: {error}"));
                state.controllers[n].alive = false;
                drop(state);
                world.restart_soon();
            }
        });
        self.controllers.borrow_mut().push(Controller { n, tasks, bus });
    }

    /// Carries out an operator's act with the newest controller. The result is in the journal.
    fn act(&self, act: &Act) {
        let world = &self.world;
        world.state().log(format_args!("operator: {act:?}"));
        if *act == Act::DeclareRestored {
            return world.declare_restored();
        }
        let controllers = self.controllers.borrow();
        let Some(controller) = controllers.last() else { return };
        let bus = controller.bus.clone();
        let vm = |name: &str| Address::new(Kind::new("vm"), VmId::from_name(name));
        let one = |kind| Address::singleton(Kind::new(kind));
        let log = world.clone();
        macro_rules! ask {
            ($to:expr, $message:expr) => {{
                let (to, message) = ($to, $message);
                controller.tasks.spawn_local(async move {
                    if let Err(error) = bus.ask(to, message).await {
                        log.state().log(format_args!("rejected: {error}"));
                    }
                });
            }};
        }
        match act {
            Act::Start { vm: name, host } => {
                ask!(vm(name), StartVmMsg { host_uuid: host.as_deref().map(HostId::from_name) })
            }
            Act::Stop { vm: name } => ask!(vm(name), StopVmMsg {}),
            Act::HaStart { vm: name } => ask!(
                one("ha"),
                HaStartVmInstanceMsg {
                    vm_instance_uuid: VmId::from_name(name),
                    judger_class_name: "Operator".to_owned(),
                    soft_avoid_host_uuids: Vec::new(),
                    host_uuid: None,
                    ha_reason: "requested by an operator".to_owned(),
                }
            ),
            Act::Maintain { host } | Act::Drain { host } | Act::Activate { host } => {
                let action = match act {
                    Act::Maintain { .. } => HostAction::Maintain,
                    Act::Drain { .. } => HostAction::Drain,
                    _ => HostAction::Activate,
                };
                ask!(one("recovery"), ChangeHostStateMsg { host_uuid: HostId::from_name(host), action })
            }
            // A careful operator does not attest for a host that is on.
            Act::ConfirmFenced { host, if_off: true } if world.is_on(host) => {}
            Act::DeclareRestored => {}
            Act::ConfirmFenced { host, if_off } => {
                // As the reply requests: nothing else holds a VM that starts with the host.
                if *if_off {
                    world.hold_autostart(host);
                }
                ask!(
                    one("ha"),
                    ConfirmHostFencedMsg { host_uuid: HostId::from_name(host), by: "the operator".to_owned() }
                )
            }
        }
    }
}

/// The starts of each host's VM of this number.
fn first_of(plan: &Plan, nth: usize) -> Vec<Act> {
    let at =
        |host: &String| plan.inventory.vms.iter().zip(&plan.places).filter(move |(_, place)| *place == host).nth(nth);
    let hosts = plan.inventory.hosts.iter().map(|host| &host.name);
    hosts.filter_map(at).map(|(vm, host)| Act::Start { vm: vm.name.clone(), host: Some(host.clone()) }).collect()
}

async fn direct(stage: &Stage, plan: &Plan) {
    let world = &stage.world;
    let began = tokio::time::Instant::now();
    tokio::time::sleep(plan.settings.ping.interval + WARM_UP).await;
    let started = (0..).map(|nth| first_of(plan, nth)).take_while(|acts| !acts.is_empty());
    for acts in started.collect::<Vec<_>>() {
        acts.iter().for_each(|act| stage.act(act));
        tokio::time::sleep(START_EVERY).await;
    }
    let mut probes = plan.probes.iter().peekable();
    for step in &plan.steps {
        while let Some(probe) = probes.next_if(|probe| probe.at <= step.at) {
            tokio::time::sleep_until(began + probe.at).await;
            world.probe(probe);
        }
        tokio::time::sleep_until(began + step.at).await;
        if !world.state().checks.violations.is_empty() {
            return;
        }
        match &step.kind {
            StepKind::Fault(fault, lasting) => world.begin(fault.clone(), *lasting),
            StepKind::Act(act) => stage.act(act),
        }
    }
    let over = plan.steps.iter().map(|step| match &step.kind {
        StepKind::Fault(_, lasting) => step.at + *lasting,
        StepKind::Act(_) => step.at,
    });
    let over = over.max().unwrap_or_default();
    let rest: Vec<_> = probes.collect();
    for probe in rest.iter().filter(|probe| probe.at <= over) {
        tokio::time::sleep_until(began + probe.at).await;
        world.probe(probe);
    }
    tokio::time::sleep_until(began + over).await;
    world.state().log("all faults are over");
    for probe in rest.iter().filter(|probe| probe.at > over) {
        tokio::time::sleep_until(began + probe.at).await;
        world.probe(probe);
    }
    let end = began + plan.lasting;
    if !plan.ends_well {
        tokio::time::sleep_until(end).await;
        return;
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let maintained = world.state().maintained();
        maintained.into_iter().for_each(|host| stage.act(&Act::Activate { host }));
        let unwell = world.unwell();
        if unwell.is_empty() && tokio::time::Instant::now() >= end {
            break;
        }
        if !world.state().checks.violations.is_empty() {
            return;
        }
        if tokio::time::Instant::now() >= end {
            let mut state = world.state();
            unwell.into_iter().for_each(|what| state.violation("live", what));
            return;
        }
        if unwell.is_empty() {
            tokio::time::sleep_until(end).await;
        }
    }
    let owed = world.state().checks.owed_audits();
    let mut state = world.state();
    owed.into_iter().for_each(|what| state.violation("I7", what));
}
