//! What a plan may say: nothing that would not be heeded.
//!
//! serde lets fields pass that it does not know where an action is flattened into its entry. So a plan that was read is written
//! down again, and whatever it said that is not in there is refused by its path.

use ringdove::observe::POINTS;
use serde::Deserialize;
use serde_json::Value;

use super::{Action, Entry, Plan, client_name, node_name};
use crate::settings::RunSettings;
use crate::trace::EVENTS;

/// A plan as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    version: u32,
    seed: u64,
    settings: RunSettings,
    entries: Vec<Entry>,
}

impl TryFrom<Value> for Plan {
    type Error = String;

    fn try_from(said: Value) -> Result<Plan, String> {
        let form = Form::deserialize(&said).map_err(|error| error.to_string())?;
        let plan =
            Plan { version: form.version, seed: form.seed, settings: form.settings, entries: form.entries };
        let heeded = serde_json::to_value(&plan).map_err(|error| error.to_string())?;
        match unheeded(&said, &heeded) {
            Some(path) => Err(format!("unknown field {path}")),
            None => Ok(plan),
        }
    }
}

/// The path of something that was said and is not heeded.
fn unheeded(said: &Value, heeded: &Value) -> Option<String> {
    match (said, heeded) {
        (Value::Object(said), Value::Object(heeded)) => said.iter().find_map(|(name, value)| {
            if value.is_null() {
                return None; // what is left out
            }
            let Some(there) = heeded.get(name) else {
                // Where it says what holds anyway it is left out when written.
                let says_nothing = *value == Value::Bool(false);
                return (!says_nothing).then(|| format!("`{name}`"));
            };
            unheeded(value, there).map(|below| format!("`{name}`: {below}"))
        }),
        (Value::Array(said), Value::Array(heeded)) => (0..)
            .zip(said.iter().zip(heeded))
            .find_map(|(at, (said, heeded))| unheeded(said, heeded).map(|below| format!("{at}: {below}"))),
        _ => None,
    }
}

impl Plan {
    /// Whether an entry names hosts, events and points that there are.
    pub(super) fn check_names(&self, entry: &Entry) -> Result<(), String> {
        let is_node = |name: &str| (1..=self.settings.nodes).any(|number| node_name(number) == name);
        let is_client = |name: &str| (1..=self.settings.clients).any(|number| client_name(number) == name);
        // Clients of bursts come and go.
        let is_host = |name: &str| is_node(name) || is_client(name) || name.starts_with('b');
        if let Some(when) = &entry.when {
            let of_nobody = ["nemesis", "sim", "net"];
            if !is_host(&when.node) && !of_nobody.contains(&when.node.as_str()) {
                return Err(format!("there is no host {}", when.node));
            }
            let is_known = match when.event.strip_prefix("point:") {
                Some(point) => POINTS.contains(&point),
                None => EVENTS.contains(&when.event.as_str()),
            };
            if !is_known {
                return Err(format!("there is no event {}", when.event));
            }
        }
        if let Some(node) = entry.action.node()
            && !is_node(node)
        {
            return Err(format!("there is no node {node}"));
        }
        if let Action::Net { fault } = &entry.action {
            let (from, to) = fault.link();
            if let Some(nobody) = [from, to].into_iter().find(|name| !is_host(name)) {
                return Err(format!("there is no host {nobody}"));
            }
        }
        Ok(())
    }
}

impl Action {
    /// The node that it is about, if it is about one.
    fn node(&self) -> Option<&str> {
        match self {
            Action::PowerLoss { node, .. }
            | Action::Kill { node }
            | Action::Stop { node }
            | Action::Start { node }
            | Action::Pause { node }
            | Action::Resume { node }
            | Action::Gray { node, .. }
            | Action::GrayEnd { node }
            | Action::Disk { node, .. }
            | Action::Destroy { node, .. }
            | Action::Reconfigure { node, .. }
            | Action::KeepImage { node }
            | Action::Remove { node }
            | Action::Add { node }
            | Action::WallSkew { node, .. }
            | Action::MonoDrift { node, .. } => Some(node),
            Action::PowerLossOfAll
            | Action::Net { .. }
            | Action::Weather { .. }
            | Action::HealNet
            | Action::Burst { .. }
            | Action::Converge => None,
        }
    }
}
