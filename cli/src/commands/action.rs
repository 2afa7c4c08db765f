//! Commands that carry out an action: `vm`, `host` and `hooks`, from the table of actions.

use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Subcommand};
use ringfence_messages::{
    Code, ErrorCode, Result,
    action::{Action, ActionFacts, ActionObject, ActionParameter, ActionParameters},
    ha::{DrainPlan, HaStartPlan},
};
use ringfence_server::notify::HookTest;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{
    ClientArgs,
    query::{client, or_dash, show},
};
use crate::{client::path_part, output::table};

/// The kind of object of a group of commands.
pub trait Group {
    /// The kind.
    const OBJECT: ActionObject;
}

/// `ringfence vm`.
#[derive(Debug)]
pub struct OfVm;

/// `ringfence host`.
#[derive(Debug)]
pub struct OfHost;

/// `ringfence hooks`.
#[derive(Debug)]
pub struct OfHook;

impl Group for OfVm {
    const OBJECT: ActionObject = ActionObject::Vm;
}

impl Group for OfHost {
    const OBJECT: ActionObject = ActionObject::Host;
}

impl Group for OfHook {
    const OBJECT: ActionObject = ActionObject::Hook;
}

/// An action on an object, as given on the command line.
#[derive(Debug)]
pub struct ActionCommand<G> {
    facts: &'static ActionFacts,
    name: String,
    parameters: ActionParameters,
    args: ClientArgs,
    group: PhantomData<G>,
}

/// The command of an action.
fn command(facts: &ActionFacts) -> Command {
    let noun = facts.object.noun();
    let mut command = Command::new(facts.verb);
    let name = match facts.object {
        ActionObject::Hook => format!("Name of the {noun}"),
        _ => format!("Name or uuid of the {noun}"),
    };
    command = command.arg(Arg::new("name").required(true).value_name("NAME").help(name));
    for parameter in facts.body.parameters() {
        let Some(option) = parameter.option() else { continue };
        let arg = Arg::new(option).long(option);
        command = command.arg(match parameter {
            ActionParameter::DryRun => arg.action(ArgAction::SetTrue).help(facts.dry_run),
            _ if parameter.is_flag() => arg.action(ArgAction::SetTrue).help(parameter.meaning().trim_end_matches('.')),
            _ => arg.value_name("HOST").help("Target host; chosen automatically if omitted"),
        });
    }
    // The connection's options bring a description of their own, so the action's is set last.
    let command = ClientArgs::augment_args(command).about(facts.help);
    match facts.more {
        "" => command.long_about(None),
        more => command.long_about(format!("{}\n\n{more}", facts.help)),
    }
}

impl<G: Group> Subcommand for ActionCommand<G> {
    fn augment_subcommands(parent: Command) -> Command {
        Action::on(G::OBJECT).fold(parent, |parent, facts| parent.subcommand(command(facts)))
    }

    fn augment_subcommands_for_update(parent: Command) -> Command {
        Self::augment_subcommands(parent)
    }

    fn has_subcommand(name: &str) -> bool {
        Action::on(G::OBJECT).any(|facts| facts.verb == name)
    }
}

impl<G: Group> FromArgMatches for ActionCommand<G> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || clap::Error::new(clap::error::ErrorKind::MissingSubcommand);
        let (verb, of) = matches.subcommand().ok_or_else(missing)?;
        let facts = Action::on(G::OBJECT).find(|facts| facts.verb == verb).ok_or_else(missing)?;
        let takes = |parameter| facts.takes(parameter);
        let flag = |parameter: ActionParameter| {
            takes(parameter) && parameter.option().is_some_and(|option| of.get_flag(option))
        };
        let parameters = ActionParameters {
            host: takes(ActionParameter::Host).then(|| of.get_one("host").cloned()).flatten(),
            dry_run: flag(ActionParameter::DryRun),
            by: takes(ActionParameter::By).then(user),
        };
        let name = of.get_one::<String>("name").cloned().ok_or_else(missing)?;
        Ok(ActionCommand { facts, name, parameters, args: ClientArgs::from_arg_matches(of)?, group: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The operator at this terminal.
fn user() -> String {
    std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "an operator".to_owned())
}

impl<G> ActionCommand<G> {
    /// The body of the request: the parameters that differ from their defaults.
    fn body(&self) -> Value {
        let mut values = Map::new();
        let given = serde_json::to_value(&self.parameters).unwrap_or_default();
        for parameter in self.facts.body.parameters() {
            let value = &given[parameter.key()];
            if !value.is_null() && *value != json!(false) {
                values.insert(parameter.key().to_owned(), value.clone());
            }
        }
        json!({ self.facts.key(): values })
    }

    async fn post<T: DeserializeOwned>(&self) -> Result<T> {
        let path = format!("/v1/{}/{}/actions", self.facts.object.path(), path_part(&self.name));
        client(&self.args)?.post(&path, &self.body()).await
    }

    /// Sends the action and prints the answer.
    ///
    /// # Errors
    /// The controller's error; a plan that cannot be carried out; a test event that was not delivered.
    pub(super) async fn run(&self) -> Result<()> {
        match (self.facts.action, self.parameters.dry_run) {
            (Action::HaStartVm, true) => failover_plan(&self.args, &self.post().await?),
            (Action::Drain, true) => drain_plan(&self.args, &self.post().await?),
            (Action::TestHook, _) => hook_test(&self.args, &self.name, &self.post().await?),
            _ => {
                let done: Value = self.post().await?;
                show(&self.args, &done, |done| self.done(done));
                Ok(())
            }
        }
    }

    /// The sentence about a successful action.
    fn done(&self, object: &Value) -> String {
        let text = |key: &str| object[key].as_str().unwrap_or("-").to_owned();
        let host = object["host"].as_str().map(|host| format!(" on {host}")).unwrap_or_default();
        let by = self.parameters.by.clone().unwrap_or_default();
        let said = self.facts.done.replace("{host}", &host).replace("{by}", &by);
        said.replace("{state}", &text("state")).replace("{status}", &text("status")).replace("{name}", &text("name"))
    }
}

fn failover_plan(args: &ClientArgs, plan: &HaStartPlan) -> Result<()> {
    show(args, plan, |plan| {
        let list = |lines: &[String]| lines.iter().map(|line| format!("  {line}\n")).collect::<String>();
        let (evidence, steps) = (list(&plan.evidence), list(&plan.steps));
        format!("{}: dry run, nothing is changed\nEvidence\n{evidence}Plan\n{steps}", plan.vm)
    });
    if plan.feasible {
        return Ok(());
    }
    let last = plan.steps.last().or(plan.evidence.last()).cloned().unwrap_or_default();
    Err(ErrorCode::new(Code::CHANGE_STATE, format!("failover of {} is not possible now: {last}", plan.vm)))
}

fn drain_plan(args: &ClientArgs, plan: &DrainPlan) -> Result<()> {
    show(args, plan, |plan| {
        let mut table = table(&["VM", "TARGET HOST", "PLAN"]);
        for step in &plan.vms {
            table.add_row([step.vm.as_str(), or_dash(step.target.as_deref()), step.what.as_str()]);
        }
        format!("{}: dry run, nothing is changed\n{table}", plan.host)
    });
    match plan.feasible {
        true => Ok(()),
        false => {
            Err(ErrorCode::new(Code::CHANGE_STATE, format!("a drain of {} would leave VMs on the host", plan.host)))
        }
    }
}

fn hook_test(args: &ClientArgs, name: &str, test: &HookTest) -> Result<()> {
    show(args, test, |test| {
        let result = if test.delivered { "accepted" } else { "not accepted" };
        format!("{} was {result} after {} ms: {}", test.id, test.millis, test.says)
    });
    match test.delivered {
        true => Ok(()),
        false => Err(ErrorCode::new(Code::OPERATION, format!("hook {name} did not deliver: {}", test.says))),
    }
}
