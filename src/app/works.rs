//! What a reload does to the running house, and what the admin server sees of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Running, Stop};
use crate::config::facts::Facts;
use crate::control::Rooms;
use crate::control::load::{Loaded, load_text};
use crate::control::refresh::Refresher;
use crate::control::reload::{Hash, Reading, Works};
use crate::ids::PeerName;
use crate::plan::{AccessLog, LogFormat, Plan};
use crate::proxy::Core;
use crate::proxy::doors::{DoorError, Doors, Prepared};
use crate::telemetry::access::Which;
use crate::telemetry::line::Format;
use crate::upstream::peer::Discovery;
use crate::upstream::state::PeerState;
use crate::upstream::world::{Upstreams, World};

/// The steps of a reload, tied to what runs.
pub(super) struct Wiring {
    core: Arc<Core>,
    doors: Arc<Doors>,
    refresher: Arc<Refresher>,
    upstreams: Arc<Upstreams>,
    path: PathBuf,
    facts: Facts,
    variables: Arc<HashMap<String, String>>,
}

/// What a reload has made ready and not yet put in force.
pub(super) struct Ready {
    world: World,
    prepared: Prepared,
}

impl Wiring {
    pub(super) fn new(
        running: &Running,
        upstreams: Arc<Upstreams>,
        path: &Path,
        facts: &Facts,
        variables: Arc<HashMap<String, String>>,
    ) -> Self {
        Self {
            core: running.core.clone(),
            doors: running.doors.clone(),
            refresher: running.refresher.clone(),
            upstreams,
            path: path.to_owned(),
            facts: facts.clone(),
            variables,
        }
    }
}

impl Works for Wiring {
    type Bound = Ready;

    fn in_force(&self) -> Arc<Plan> {
        self.core.world.load().plan.clone()
    }

    fn read(&mut self) -> Reading {
        let text = match std::fs::read(&self.path) {
            Ok(text) => text,
            Err(error) => {
                return Reading {
                    hash: None,
                    plan: Err(vec![format!("{}: cannot be read: {error}", self.path.display())]),
                };
            }
        };
        let hash = Some(Hash::of(&text));
        let Ok(text) = String::from_utf8(text) else {
            return Reading { hash, plan: Err(vec![format!("{}: is not UTF-8 text", self.path.display())]) };
        };
        let loaded = load_text(&text, &self.path, &self.facts, &|name| self.variables.get(name).cloned());
        let plan = loaded.map(|loaded| loaded.plan);
        Reading { hash, plan: plan.map_err(|problems| problems.to_string().lines().map(str::to_owned).collect()) }
    }

    async fn bind(&mut self, plan: &Arc<Plan>) -> Result<Ready, Vec<String>> {
        let prepared = self.doors.prepare(plan);
        let prepared = prepared.map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        let world = World::next(&self.core.world.load(), plan.clone(), &self.upstreams).map_err(|error| vec![error])?;
        Ok(Ready { world, prepared })
    }

    fn apply(&mut self, plan: Arc<Plan>, ready: Ready) {
        let world = Arc::new(ready.world);
        self.core.world.store(world.clone());
        self.core.access.choose(which(&plan), format(&plan));
        self.refresher.set_world(&world);
        self.doors.commit(ready.prepared);
    }
}

/// The house as the admin server sees it.
pub(super) struct InForce(pub(super) Arc<Core>);

impl Rooms for InForce {
    fn plan(&self) -> Arc<Plan> {
        self.0.world.load().plan.clone()
    }

    fn peers(&self) -> Vec<PeerState> {
        let world = self.0.world.load_full();
        world.peers.iter().chain(&world.adhoc.peers()).map(|peer| peer.state()).collect()
    }

    fn pending(&self) -> Vec<PeerName> {
        let world = self.0.world.load();
        let pending = world.peers.iter().filter(|peer| matches!(peer.discovery(), Discovery::Pending));
        pending.map(|peer| peer.name().clone()).collect()
    }
}

/// The doors that could not be bound, each with the line of the file that asked for it.
pub(super) fn door_problems(loaded: &Loaded, errors: &[DoorError]) -> Stop {
    let line = |error: &DoorError| {
        let door = loaded.plan.doors.iter().position(|door| door.listen == error.addr && door.side == error.side);
        door.map_or_else(|| error.to_string(), |door| loaded.bind_problem(door, &error.source).to_string())
    };
    Stop { code: 1, lines: errors.iter().map(line).collect() }
}

/// The plan's word for the access log, in the log's own.
pub(super) fn which(plan: &Plan) -> Which {
    match plan.access_log.log {
        AccessLog::Off => Which::Off,
        AccessLog::Failures => Which::Failures,
        AccessLog::All => Which::All,
    }
}

/// The same for the format.
pub(super) fn format(plan: &Plan) -> Format {
    match plan.access_log.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    }
}
