//! The actions of operators on VMs, hosts and hooks: one table of everything that describes them.
//!
//! Purpose: the command line, the HTTP API with its description, the role check and the web page read this table, so
//! that they cannot disagree. What an action does is one arm of `carry_out` in `server/src/http/actions.rs`.
//! Invariants: a row for each action, in the order of the enum; names are stable, because scripts use them.
//! Alternatives considered: a macro that generates the types of bodies (a reader then cannot find them).

use serde::{Deserialize, Serialize};

/// Role of a token; each role includes the roles before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read only.
    Viewer,
    /// Also run actions on VMs, hosts and hooks.
    Operator,
    /// Also change the inventory and attest that a host is off.
    Admin,
}

impl Role {
    /// All roles, the least first, with what each permits.
    pub const ALL: [(Role, &str); 3] = [
        (Role::Viewer, "Read only"),
        (Role::Operator, "Also run actions on VMs, hosts and hooks"),
        (Role::Admin, "Also change the inventory and attest that a host is off"),
    ];

    /// The role's name in a config file.
    pub const fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }
}

/// A kind of object that actions act on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionObject {
    /// A VM.
    Vm,
    /// A host.
    Host,
    /// A hook.
    Hook,
}

impl ActionObject {
    /// All kinds.
    pub const ALL: [ActionObject; 3] = [ActionObject::Vm, ActionObject::Host, ActionObject::Hook];

    /// The kind as text.
    pub const fn noun(self) -> &'static str {
        match self {
            ActionObject::Vm => "VM",
            ActionObject::Host => "host",
            ActionObject::Hook => "hook",
        }
    }

    /// The kind in paths: `/v1/vms`, `/ui/vms`.
    pub const fn path(self) -> &'static str {
        match self {
            ActionObject::Vm => "vms",
            ActionObject::Host => "hosts",
            ActionObject::Hook => "hooks",
        }
    }
}

/// A parameter of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionParameter {
    /// Name or uuid of the target host.
    Host,
    /// Return the plan without carrying it out.
    DryRun,
    /// Name of the operator.
    By,
}

impl ActionParameter {
    /// The key in a body.
    pub const fn key(self) -> &'static str {
        match self {
            ActionParameter::Host => "host",
            ActionParameter::DryRun => "dryRun",
            ActionParameter::By => "by",
        }
    }

    /// The option of the command line; `None` if the command line sets it without an option.
    pub const fn option(self) -> Option<&'static str> {
        match self {
            ActionParameter::Host => Some("host"),
            ActionParameter::DryRun => Some("dry-run"),
            ActionParameter::By => None,
        }
    }

    /// Whether it is true or false; a text otherwise.
    pub const fn is_flag(self) -> bool {
        matches!(self, ActionParameter::DryRun)
    }

    /// The meaning, a sentence.
    pub const fn meaning(self) -> &'static str {
        match self {
            ActionParameter::Host => "Name or uuid of the target host; chosen automatically if omitted.",
            ActionParameter::DryRun => "Return the plan without carrying it out.",
            ActionParameter::By => "Name of the operator.",
        }
    }
}

/// Values of the parameters. An action accepts those of its [`ActionBody`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct ActionParameters {
    /// [`ActionParameter::Host`].
    pub host: Option<String>,
    /// [`ActionParameter::DryRun`].
    pub dry_run: bool,
    /// [`ActionParameter::By`].
    pub by: Option<String>,
}

/// The form of an action's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActionBody {
    /// Without parameters.
    Empty,
    /// Of a start.
    Start,
    /// Of a failover.
    HaStart,
    /// Of a drain.
    Drain,
    /// Of an attestation.
    Confirmation,
}

impl ActionBody {
    /// All forms.
    pub const ALL: [ActionBody; 5] =
        [ActionBody::Empty, ActionBody::Start, ActionBody::HaStart, ActionBody::Drain, ActionBody::Confirmation];

    /// The name in the API's description, and its meaning.
    pub const fn name(self) -> (&'static str, &'static str) {
        match self {
            ActionBody::Empty => ("Empty", "`{}`: an action without parameters. Keys are errors."),
            ActionBody::Start => ("StartOrder", "Parameters of a start."),
            ActionBody::HaStart => ("HaStartOrder", "Parameters of a failover."),
            ActionBody::Drain => ("DrainOrder", "Parameters of a drain."),
            ActionBody::Confirmation => ("Confirmation", "An operator's attestation."),
        }
    }

    /// The parameters.
    pub const fn parameters(self) -> &'static [ActionParameter] {
        match self {
            ActionBody::Empty => &[],
            ActionBody::Start => &[ActionParameter::Host],
            ActionBody::HaStart => &[ActionParameter::Host, ActionParameter::DryRun],
            ActionBody::Drain => &[ActionParameter::DryRun],
            ActionBody::Confirmation => &[ActionParameter::By],
        }
    }
}

/// When the page shows the button of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// Always.
    Always,
    /// While the VM runs.
    Running,
    /// While the VM does not run.
    NotRunning,
    /// While the host is in service.
    InService,
    /// While the host is in maintenance.
    InMaintenance,
}

/// An action of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a VM.
    StartVm,
    /// Fail over a VM.
    HaStartVm,
    /// Stop a VM.
    StopVm,
    /// Start maintenance of a host.
    Maintain,
    /// Drain a host.
    Drain,
    /// Return a host to service.
    Activate,
    /// Ping a host.
    Ping,
    /// Attest that a host is off.
    ConfirmFenced,
    /// Send a test event through a hook.
    TestHook,
}

/// What describes an action. In texts `{name}` is the object, `{state}` and `{status}` its state and status after the
/// action, `{host}` its host, and `{by}` the operator.
#[derive(Clone, Copy, Debug)]
pub struct ActionFacts {
    /// The action.
    pub action: Action,
    /// What it acts on.
    pub object: ActionObject,
    /// Name on the command line and in paths of the page; in camel case the key of the API.
    pub verb: &'static str,
    /// Parameters.
    pub body: ActionBody,
    /// The least role.
    pub role: Role,
    /// First line of the command's help.
    pub help: &'static str,
    /// The rest of the command's help.
    pub more: &'static str,
    /// Help of `--dry-run`; empty without that parameter.
    pub dry_run: &'static str,
    /// Sentence of the API's description.
    pub meaning: &'static str,
    /// Link on the page; empty where the page has its own form.
    pub link: &'static str,
    /// Confirming button on the page; the name follows.
    pub button: &'static str,
    /// Effect, for the confirmation on the page.
    pub effect: &'static str,
    /// When the page shows the link.
    pub offered: Offered,
    /// What the command prints after success; empty where it prints the answer.
    pub done: &'static str,
}

impl Action {
    /// What describes this action.
    pub fn facts(self) -> &'static ActionFacts {
        &TABLE[self as usize]
    }

    /// The actions on this kind of object.
    pub fn on(object: ActionObject) -> impl Iterator<Item = &'static ActionFacts> {
        TABLE.iter().filter(move |facts| facts.object == object)
    }
}

impl ActionFacts {
    /// The key in a body of the API: the verb in camel case.
    pub fn key(&self) -> String {
        let mut upper = false;
        let mut key = String::new();
        for c in self.verb.chars() {
            match c {
                '-' => upper = true,
                c if std::mem::take(&mut upper) => key.push(c.to_ascii_uppercase()),
                c => key.push(c),
            }
        }
        key
    }

    /// Whether it has this parameter.
    pub fn takes(&self, parameter: ActionParameter) -> bool {
        self.body.parameters().contains(&parameter)
    }
}

/// The state of a VM or host after an action.
const VM_DONE: &str = "{name} is {state}{host}";
const HOST_DONE: &str = "{name} is {state}, {status}";

/// All actions, in the order of [`Action`].
pub static TABLE: [ActionFacts; 9] = [
    ActionFacts {
        action: Action::StartVm,
        object: ActionObject::Vm,
        verb: "start",
        body: ActionBody::Start,
        role: Role::Operator,
        help: "Start a VM",
        more: "",
        dry_run: "",
        meaning: "Start the VM.",
        link: "Start",
        button: "Start",
        effect: "Starts {name} if its last host reports that the VM does not run there. Never fences.",
        offered: Offered::NotRunning,
        done: VM_DONE,
    },
    ActionFacts {
        action: Action::HaStartVm,
        object: ActionObject::Vm,
        verb: "ha-start",
        body: ActionBody::HaStart,
        role: Role::Operator,
        help: "Fail over a VM: fence it on its last host, then start it",
        more: "",
        dry_run: "Show the plan and its evidence without changes; exit status 1 if the failover cannot be tried",
        meaning: "Fail over the VM: fence it on its last host, then start it.",
        link: "Fail over",
        button: "Fail over",
        effect: "Fences {name} on its last host, then starts it on another host. The plan is below.",
        offered: Offered::NotRunning,
        done: VM_DONE,
    },
    ActionFacts {
        action: Action::StopVm,
        object: ActionObject::Vm,
        verb: "stop",
        body: ActionBody::Empty,
        role: Role::Operator,
        help: "Stop a VM",
        more: "",
        dry_run: "",
        meaning: "Stop the VM.",
        link: "Stop",
        button: "Stop",
        effect: "Stops {name}: QEMU gets a quit request, then is killed. The VM does not fail over.",
        offered: Offered::Running,
        done: VM_DONE,
    },
    ActionFacts {
        action: Action::Maintain,
        object: ActionObject::Host,
        verb: "maintain",
        body: ActionBody::Empty,
        role: Role::Operator,
        help: "Start maintenance: no pings, redeploys or placement",
        more: "",
        dry_run: "",
        meaning: "Put the host into maintenance.",
        link: "Start maintenance",
        button: "Start maintenance of",
        effect: "Puts {name} into maintenance: no pings, redeploys or placement. Its VMs keep running.",
        offered: Offered::InService,
        done: HOST_DONE,
    },
    ActionFacts {
        action: Action::Drain,
        object: ActionObject::Host,
        verb: "drain",
        body: ActionBody::Drain,
        role: Role::Operator,
        help: "Put a host into maintenance and move its VMs to other hosts",
        more: "",
        dry_run: "Show the target host of each VM without changes; exit status 1 if a VM has no target host",
        meaning: "Put the host into maintenance and move its VMs to other hosts, two at a time.",
        link: "Drain",
        button: "Drain",
        effect: "Puts {name} into maintenance and moves its VMs: each is stopped, verified and started on another \
                 host, two at a time. A VM without a target host is not stopped. The plan is below.",
        offered: Offered::Always,
        done: "{name} is in {state}, drain in progress; `ringfence explain {name}` shows the progress",
    },
    ActionFacts {
        action: Action::Activate,
        object: ActionObject::Host,
        verb: "activate",
        body: ActionBody::Empty,
        role: Role::Operator,
        help: "Return a host to service; ends a drain",
        more: "",
        dry_run: "",
        meaning: "Return the host to service. Ends a drain.",
        link: "Return to service",
        button: "Return to service:",
        effect: "Returns {name} to service. A drain ends; moved VMs stay where they are.",
        offered: Offered::InMaintenance,
        done: HOST_DONE,
    },
    ActionFacts {
        action: Action::Ping,
        object: ActionObject::Host,
        verb: "ping",
        body: ActionBody::Empty,
        role: Role::Operator,
        help: "Ping a host now",
        more: "",
        dry_run: "",
        meaning: "Ping the host now.",
        link: "Ping",
        button: "Ping",
        effect: "Pings {name} now.",
        offered: Offered::Always,
        done: HOST_DONE,
    },
    ActionFacts {
        action: Action::ConfirmFenced,
        object: ActionObject::Host,
        verb: "confirm-fenced",
        body: ActionBody::Confirmation,
        // The attestation replaces every other proof that a host is off.
        role: Role::Admin,
        help: "Attest that an unreachable host is off",
        more: "The VMs of that host then start elsewhere without further proof. If one of them still writes, its disk \
               is destroyed.",
        dry_run: "",
        meaning: "Attest that the host is off.",
        link: "Confirm that it is off",
        button: "Confirm that this host is off:",
        effect: "You attest that you have seen {name} powered off. Its VMs then start elsewhere without further proof. \
                 If one of them still writes, its disk is destroyed.",
        offered: Offered::Always,
        done: "{name} marked as off, attested by {by}. Keep it off until its VMs run elsewhere; where no storage fence \
               stands (`ringfence explain {name}`), make sure that no VM starts with it: it would write beside the new \
               one",
    },
    ActionFacts {
        action: Action::TestHook,
        object: ActionObject::Hook,
        verb: "test",
        body: ActionBody::Empty,
        role: Role::Operator,
        help: "Send a signed test event and print the response",
        more: "The exit status is 1 if the receiver does not accept the event.",
        dry_run: "",
        meaning: "Send a signed test event and return the response.",
        link: "",
        button: "Test",
        effect: "",
        offered: Offered::Always,
        done: "",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_has_its_row_and_complete_texts() {
        for (index, facts) in TABLE.iter().enumerate() {
            assert_eq!(facts.action as usize, index, "{}", facts.verb);
            assert_eq!(facts.dry_run.is_empty(), !facts.takes(ActionParameter::DryRun), "{}", facts.verb);
            assert!(facts.help.len() <= 60 && !facts.help.ends_with('.'), "{}", facts.help);
            assert!(facts.meaning.ends_with('.') && facts.role >= Role::Operator, "{}", facts.verb);
            assert_eq!(facts.link.is_empty(), facts.effect.is_empty(), "{}", facts.verb);
            let same = TABLE.iter().filter(|of| (of.object as u8, of.verb) == (facts.object as u8, facts.verb));
            assert_eq!(same.count(), 1, "{}", facts.verb);
        }
        assert_eq!(Action::ConfirmFenced.facts().key(), "confirmFenced");
        let bodies = ActionBody::ALL.map(ActionBody::name);
        assert!(TABLE.iter().all(|facts| bodies.contains(&facts.body.name())));
    }
}
