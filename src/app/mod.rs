//! The only wiring: file -> Plan -> World -> doors -> run -> drain.

mod behind;
mod data;
mod discovery;
mod exposed;
mod works;

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::cli::Environment;
use crate::config::facts::Facts;
use crate::control::House;
use crate::control::admin;
use crate::control::admin::answer::Surface;
use crate::control::admin::listen::Listener;
use crate::control::child::Child;
use crate::control::dnsdoor::{self, DnsDoor};
use crate::control::jwks::Jwks;
use crate::control::load::{Loaded, load};
use crate::control::probe::Prober;
use crate::control::ready::{self, Opened};
use crate::control::refresh::Refresher;
use crate::control::reload::{Captured, Handle, Reloader, Trigger};
use crate::control::signals::{self, Signals, Told};
use crate::control::spiffe::Source;
use crate::ids::{Addr, Door};
use crate::life::drain::{Drain, Phase};
use crate::life::shutdown::{Direction, End, Steps, shutdown};
use crate::life::tasks::Tasks;
use crate::plan::Plan;
use crate::proxy::Core;
use crate::proxy::doors::{Doors, Prepared};
use crate::proxy::learned::Destinations;
use crate::proxy::mirror::Mirrors;
use crate::proxy::stale::Stales;
use crate::telemetry::access::AccessLog;
use crate::telemetry::lines::{Lines, stderr};
use crate::telemetry::log;
use crate::telemetry::metrics::Metrics;
use crate::upstream::world::{Upstreams, World};
use behind::{Means, Settled};
use data::Data;
use works::{Follow, InForce, Wiring};

/// How long inbound waits for first endpoints, and for a first identity, at start; two services that wait for each other's
/// names must both start.
const FIRST_ENDPOINTS: Duration = Duration::from_secs(1);

/// How long copies of requests that are still under way may take in the end.
const LAST_COPIES: Duration = Duration::from_secs(1);

/// How long the last lines of the log may take to be written out, and the app's code to come.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Runs the proxy with the file at `path`, and `command` under it where there is one.
pub fn run(path: &Path, command: &[OsString], environment: &Environment) -> ExitCode {
    let metrics = Arc::new(Metrics::default());
    let lines = match stderr().and_then(|stderr| Lines::start(stderr, metrics.clone())) {
        Ok(lines) => lines,
        Err(error) => {
            eprintln!("outrigger: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = begin(path, command, environment, &metrics, &lines).unwrap_or_else(|Stop { code, lines: why }| {
        lines.put(|out| why.iter().for_each(|line| out.extend_from_slice(format!("{line}\n").as_bytes())));
        ExitCode::from(code)
    });
    // Whoever reads them may have stopped: then the code alone has to tell.
    lines.close(LAST_LINES);
    code
}

fn begin(
    path: &Path,
    command: &[OsString],
    environment: &Environment,
    metrics: &Arc<Metrics>,
    lines: &Arc<Lines>,
) -> Result<ExitCode, Stop> {
    log::init(environment.variable("OUTRIGGER_LOG").as_deref(), lines.clone())
        .map_err(|error| Stop { code: 2, ..Stop::because(error) })?;
    let facts = Facts::gather();
    let variables = environment.variables();
    let loaded = load(path, &facts, &|name| variables.get(name).cloned())
        .map_err(|problems| Stop { code: 1, lines: vec![problems.to_string()] })?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    let (which, format) = loaded.plan.access_log.choice();
    let access = AccessLog::new(which, format, lines.clone());
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let means = if command.is_empty() {
        behind::without(&loaded.plan).map_err(Stop::because)?;
        Means::None
    } else {
        behind::prepare(&loaded.plan, environment.exe()).map_err(Stop::because)?
    };
    let data = Data::start(loaded.plan.workers)?;
    // Rules for the app last until all that it was sent and sent has ended.
    let settled = means.settle(&loaded.plan, environment, &data)?;
    let app = (command, &settled);
    let code = control.block_on(serve(path, &facts, &variables, loaded, app, &data, (metrics.clone(), access)));
    data.end();
    code
}

/// Why the program ends before it has begun.
struct Stop {
    code: u8,
    lines: Vec<String>,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::because(error)
    }
}

impl Stop {
    fn because(error: impl std::fmt::Display) -> Self {
        Self { code: 1, lines: vec![format!("outrigger: {error}")] }
    }
}

/// Everything that runs, by name.
struct Running {
    core: Arc<Core>,
    doors: Arc<Doors>,
    refresher: Arc<Refresher>,
    prober: Arc<Prober>,
    dns: Arc<DnsDoor>,
    follow: Arc<Follow>,
    jwks: Arc<Jwks>,
    agent: Arc<Source>,
    stop: Drain,
    tasks: Tasks,
    opened: Opened,
    captured: Captured,
}

impl Running {
    /// Lets everything that follows a World follow the first one.
    fn follow(&self) {
        let world = self.core.world.load_full();
        self.refresher.set_world(&world);
        self.prober.set(&world.peers);
        self.jwks.set(world.jwt.as_ref());
        self.agent.set(world.plan.identity.as_ref(), world.identity.as_ref());
    }
}

async fn serve(
    path: &Path,
    facts: &Facts,
    variables: &Arc<std::collections::HashMap<String, String>>,
    loaded: Loaded,
    (command, app): (&[OsString], &Settled),
    data: &Data,
    (metrics, access): (Arc<Metrics>, AccessLog),
) -> Result<ExitCode, Stop> {
    // Caught before anything is open, so that no early signal has the system's default effect.
    let mut signals = Signals::catch(!command.is_empty())?;
    let plan = Arc::new(loaded.plan.clone());
    let tasks = Tasks::default();
    let upstreams = Arc::new(Upstreams::new(metrics.clone(), Tasks::default()));
    data.own(upstreams.sweep());
    let (refresher, adhoc) = discovery::start(&plan, &upstreams, &tasks);
    let world = World::first(plan.clone(), &upstreams, adhoc).map_err(Stop::because)?;
    let core = Arc::new(core(world, &metrics, access));
    let doors = Arc::new(Doors::new(core.clone(), data.handle()));
    let dns = Arc::new(DnsDoor::new(plan.clone(), tasks.clone(), metrics.clone()));
    let (servers, names, mut prepared) = bind_all(&plan, &loaded, &doors, &dns).await?;
    let prober = Arc::new(Prober::new(tasks.clone(), data.handle()));
    let jwks = Arc::new(Jwks::new(tasks.clone(), refresher.clone(), metrics.clone()));
    let agent = Arc::new(Source::new(tasks.clone(), metrics.clone()));
    let follow = Follow::start(&core, &tasks);
    let (stop, opened) = (Drain::default(), Opened::default());
    let captured = app.captured;
    let running = Running { core, doors, refresher, prober, follow, dns, jwks, agent, stop, tasks, opened, captured };
    let wiring = Wiring::new(&running, upstreams, path, facts, variables.clone());
    let (reloader, reloads) = Reloader::new(wiring, loaded.hash, metrics.clone());
    serve_pages(servers, &running, &reloads);

    running.dns.commit(names, &plan)?;
    running.doors.open(&mut prepared, Door::Outbound);
    running.follow();
    if !first_endpoints(&mut signals, &running, &reloads).await {
        running.stop.advance(Phase::Draining);
        return Ok(end(signals, running, None).await);
    }
    running.doors.open(&mut prepared, Door::Inbound);
    running.opened.set();
    // Not before: a reload binds what is not open yet. Who asks earlier waits; what the file became meanwhile is seen.
    follow_files(path, &running, reloader, &reloads);
    let lack = running.core.world.load().identity.as_ref().and_then(|store| store.lack());
    match ready::no_identity(&plan, lack) {
        None => info!(service = %plan.service, "ready"),
        Some(why) => warn!(service = %plan.service, "the doors are open, and `/ready` waits: {why}"),
    }
    let child = match (!command.is_empty()).then(|| Child::start(command, &app.behind, &running.tasks)).transpose() {
        Ok(child) => child,
        Err(error) => {
            running.stop.advance(Phase::Draining);
            end(signals, running, None).await;
            return Err(Stop { code: error.exit_code(), ..Stop::because(error) });
        }
    };
    running.tasks.spawn(exposed::look(running.core.clone()));
    Ok(until_the_end(signals, running, child, &reloads, app.lost()).await)
}

/// Reloads when asked to, and when the file or what it names has changed.
fn follow_files(path: &Path, running: &Running, reloader: Reloader<Wiring>, reloads: &Handle) {
    let file = discovery::file_changes(path, &running.tasks);
    running.tasks.spawn(reloader.run(Some(file), running.stop.watch()));
    running.follow.plain(&running.tasks, reloads.clone());
}

/// What all connections share.
fn core(world: World, metrics: &Arc<Metrics>, access: AccessLog) -> Core {
    Core {
        world: ArcSwap::from_pointee(world),
        metrics: metrics.clone(),
        access,
        inbound: Direction::default(),
        outbound: Direction::default(),
        stale: Stales::default(),
        mirrors: Mirrors::default(),
        destinations: Destinations::default(),
    }
}

/// Waits for first endpoints and an identity, whether they all come or not: where one is lacking the answer is 503 with
/// the reason. `false` when the end was asked for meanwhile.
async fn first_endpoints(signals: &mut Signals, running: &Running, reloads: &Handle) -> bool {
    let mut stop = running.stop.watch();
    let answers = futures_util::future::join(
        running.refresher.first_answers(FIRST_ENDPOINTS),
        running.agent.first(FIRST_ENDPOINTS),
    );
    let mut answers = std::pin::pin!(answers);
    loop {
        tokio::select! {
            // What asks for the end comes before what lets the app start.
            biased;
            told = signals.next() => match told {
                Told::Reload => reloads.ask(Trigger::Signal),
                Told::Hand(_) => {}
                Told::End(signal) => {
                    info!(signal = signals::name(signal), "ending before the start was done");
                    return false;
                }
            },
            _ = stop.reached(Phase::Draining) => return false,
            _ = &mut answers => return true,
        }
    }
}

/// Binds everything, or says all that cannot be bound.
async fn bind_all(
    plan: &Arc<Plan>,
    loaded: &Loaded,
    doors: &Doors,
    dns: &DnsDoor,
) -> Result<(Servers, dnsdoor::Prepared, Prepared), Stop> {
    let (servers, mut lines) = bind_servers(plan, loaded).await;
    let names = dns.prepare(plan).await.unwrap_or_else(|errors| {
        lines.extend(works::dns_problems(Some(loaded), &errors));
        dnsdoor::Prepared::default()
    });
    match doors.prepare(plan).await {
        Ok(prepared) if lines.is_empty() => return Ok((servers, names, prepared)),
        Ok(_) => {}
        Err(errors) => lines.extend(works::door_problems(Some(loaded), &errors)),
    }
    Err(Stop { code: 1, lines: lines.into_iter().map(|line| format!("outrigger: {line}")).collect() })
}

/// Servers that are bound, and what each shows.
type Servers = Vec<(Listener, Surface)>;

/// Binds the admin server and its read-only sibling; a line for each that cannot be.
async fn bind_servers(plan: &Plan, loaded: &Loaded) -> (Servers, Vec<String>) {
    let admin = plan.admin.iter().map(|admin| ("admin.listen", admin.listen.clone(), Surface::Admin(admin.clone())));
    let status = plan.status.iter().map(|status| ("status", Addr::Tcp(*status), Surface::Status));
    let (mut bound, mut lines) = (Vec::new(), Vec::new());
    for (key, addr, surface) in admin.chain(status) {
        match Listener::bind(&addr).await {
            Ok(listener) => bound.push((listener, surface)),
            Err(error) => lines.push(loaded.server_problem(key, &addr.to_string(), &error).to_string()),
        }
    }
    (bound, lines)
}

fn serve_pages(servers: Servers, running: &Running, reloads: &Handle) {
    let house = Arc::new(House {
        rooms: Arc::new(InForce(running.core.clone(), running.dns.clone())),
        metrics: running.core.metrics.clone(),
        started: SystemTime::now(),
        since: Instant::now(),
        stop: running.stop.clone(),
        opened: running.opened.clone(),
        reloads: reloads.clone(),
    });
    for (listener, surface) in servers {
        running.tasks.spawn(admin::serve(listener, house.clone(), surface, running.tasks.clone()));
    }
}

/// Waits for a signal, the app's end or a drain asked for by admin; then ends everything in order.
async fn until_the_end(
    mut signals: Signals,
    running: Running,
    mut child: Option<Child>,
    reloads: &Handle,
    lost: impl Future<Output = ()>,
) -> ExitCode {
    let mut stop = running.stop.watch();
    let mut lost = std::pin::pin!(lost);
    let mut failed = false;
    let app_ended = child.as_ref().map(|child| child.end());
    let mut app_ended = std::pin::pin!(async {
        match app_ended {
            Some(end) => {
                end.await;
            }
            None => std::future::pending().await,
        }
    });
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::Reload => reloads.ask(Trigger::Signal),
                Told::Hand(signal) => if let Some(child) = &child { child.hand(signal) },
                Told::End(signal) => {
                    info!(signal = signals::name(signal), "ending in order; a second signal does not wait");
                    if let Some(child) = &mut child { child.end_with(signal) }
                    break;
                }
            },
            () = &mut app_ended => {
                info!("ending with the app");
                break;
            }
            _ = stop.reached(Phase::Draining) => {
                info!("a drain was asked for");
                break;
            }
            () = &mut lost => {
                error!("the process that holds the app's network has ended, and nobody can call the app any more: ending");
                failed = true;
                break;
            }
        }
    }
    running.stop.advance(Phase::Draining);
    let code = end(signals, running, child).await;
    // Whoever starts us again at a failure must do so however well the app has ended.
    if failed { ExitCode::FAILURE } else { code }
}

async fn end(mut signals: Signals, running: Running, child: Option<Child>) -> ExitCode {
    let core = running.core.clone();
    let stop = running.stop.clone();
    let (tell_code, code) = tokio::sync::oneshot::channel();
    let exit = child.as_ref().map(Child::end);
    if let Some(exit) = exit {
        running.tasks.spawn(async move {
            // The receiver is gone where the app outlives even the forced end.
            let _ = tell_code.send(crate::control::child::exit_code(exit.await));
        });
    }
    let had_child = child.is_some();
    let steps = Steps {
        inbound: core.inbound.clone(),
        outbound: core.outbound.clone(),
        app: child,
        stop: stop.watch(),
        grace: core.world.load().plan.grace,
    };
    let ending = shutdown(steps);
    tokio::pin!(ending);
    let ended = loop {
        tokio::select! {
            ended = &mut ending => break ended,
            told = signals.next() => if let Told::End(_) = told {
                warn!("a second signal: ending at once");
                stop.advance(Phase::Forced);
            },
        }
    };
    match ended {
        End::Forced { why, connections } => error!(?why, connections, "the shutdown was cut short"),
        // Nobody waits for a copy's answer: one that hangs is not worth a later end.
        End::Finished => {
            let _ = tokio::time::timeout(LAST_COPIES, core.mirrors.idle()).await;
        }
    }
    if had_child {
        // Killed at the latest by the forced end, so it is there at once.
        return tokio::time::timeout(LAST_LINES, code)
            .await
            .ok()
            .and_then(Result::ok)
            .map_or(ExitCode::FAILURE, ExitCode::from);
    }
    ExitCode::SUCCESS
}
