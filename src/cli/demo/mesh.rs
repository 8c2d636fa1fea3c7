//! The demo's processes: each service under a sidecar of its own, with files in a folder of its own, on free ports. They
//! call each other by strict mutual TLS with certificates of an authority that is made for the occasion.
//!
//! Nothing outlives the demo: at its end, at an error and at a panic the sidecars are ended by this file's `Drop`;
//! should even that not run, the services' stdin ends with the demo, they end, and each takes its sidecar with it.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls_pki_types::UnixTime;
use tokio::time::sleep;

use super::caller::Caller;
use super::service::Role;
use crate::cli::ca::{CERTIFICATE, KEY, ROOTS, throw_away};
use crate::cli::wait::Wait;
use crate::ids::Addr;
use crate::life::tasks::Tasks;
use crate::reason::Reason;
use crate::tls::files;
use crate::tls::identity::Identity;
use crate::tls::material::{Material, Roots, Sourced};
use crate::tls::verify::Wanted;

/// How long all sidecars together may take to be ready.
const START_CLOCK: Duration = Duration::from_secs(20);
/// The grace in the sidecars' files, in seconds.
const GRACE_SECONDS: u32 = 2;
/// How often, with this rest between, an ending sidecar is looked at before it is killed.
const END_LOOKS: u32 = 300;
const END_REST: Duration = Duration::from_millis(10);
/// How often other ports are tried when another process took one.
const TRIES: u32 = 3;

/// What one instance is.
struct Spec {
    name: &'static str,
    service: &'static str,
    delay: Duration,
    failing: u32,
    next: Option<&'static str>,
}

/// web calls cart, cart calls inventory, of which there are two.
const SPECS: [Spec; 4] = [
    Spec { name: "web", service: "web", delay: Duration::from_millis(1), failing: 0, next: Some("cart") },
    Spec { name: "cart", service: "cart", delay: Duration::from_millis(1), failing: 0, next: Some("inventory") },
    Spec { name: "inventory-1", service: "inventory", delay: Duration::from_millis(3), failing: 0, next: None },
    Spec { name: FLAKY, service: "inventory", delay: Duration::from_millis(80), failing: 150, next: None },
];

/// The mesh's trust domain.
const DOMAIN: &str = "demo";

/// Who sends the load.
const LOAD: &str = "load";

/// The instance that is slow and fails.
pub(super) const FLAKY: &str = "inventory-2";

/// One instance's addresses, all on loopback.
#[derive(Debug, Clone)]
pub(super) struct Instance {
    pub(super) name: &'static str,
    service: &'static str,
    pub(super) inbound: SocketAddr,
    pub(super) admin: SocketAddr,
    outbound: SocketAddr,
    app: SocketAddr,
}

/// A running sidecar with its service.
struct Running {
    name: &'static str,
    process: Child,
    /// Held open until the end: see above.
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

/// All of them.
pub(super) struct Mesh {
    pub(super) instances: Vec<Instance>,
    running: Vec<Running>,
    folder: PathBuf,
}

impl Mesh {
    /// Starts everything with `exe` and waits until every sidecar and every service takes connections.
    pub(super) async fn start(exe: &Path) -> Result<Self, String> {
        let mut last = String::new();
        for _ in 0..TRIES {
            let mut mesh = Self::launch(exe).map_err(|error| format!("cannot start the demo's mesh: {error}"))?;
            match mesh.ready().await {
                Ok(()) => return Ok(mesh),
                // Between choosing a port and binding it, another process may take it.
                Err(why) if why.contains("in use") => last = why,
                Err(why) => return Err(why),
            }
        }
        Err(last)
    }

    fn launch(exe: &Path) -> io::Result<Self> {
        let instances = choose_ports()?;
        let folder = std::env::temp_dir().join(format!("outrigger-demo-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let mut mesh = Self { instances, running: Vec::new(), folder };
        let services: Vec<_> = SPECS.iter().map(|spec| (spec.name, spec.service)).chain([(LOAD, LOAD)]).collect();
        throw_away(DOMAIN, &services, &mesh.folder, SystemTime::now()).map_err(io::Error::other)?;
        fs::write(mesh.folder.join("peers.yaml"), control_file(&mesh.instances))?;
        for (spec, instance) in SPECS.iter().zip(&mesh.instances) {
            let running = launch(exe, &mesh.folder, spec, instance, &mesh.instances)?;
            mesh.running.push(running);
        }
        Ok(mesh)
    }

    /// How the load calls `web`: as a member of the mesh.
    pub(super) fn load_tls(&self) -> Result<Arc<ClientConfig>, String> {
        let at = |name: &str| self.folder.join(LOAD).join(name);
        let sourced = |file: &str| files::certificates(&at(file)).map(|it| Sourced { origin: file.to_owned(), it });
        let material = Material {
            chain: sourced(CERTIFICATE)?,
            key: Sourced { origin: KEY.to_owned(), it: files::private_key(&at(KEY))? },
            roots: vec![Roots { domain: None, certificates: sourced(ROOTS)? }],
            crls: Vec::new(),
            tls12: false,
        };
        let web = id("web").parse().map_err(|error| format!("{}: {error}", id("web")))?;
        let identity = Identity::new(material, UnixTime::now())?;
        Ok(identity.client_config(Wanted::new([web].into(), None), &[b"http/1.1"]))
    }

    /// Calls each sidecar without TLS; gives how many refused that.
    pub(super) async fn refusals(&self, tasks: &Tasks) -> Result<usize, String> {
        let mut refused = 0;
        for Instance { name, inbound, .. } in &self.instances {
            let (status, said) = Caller::new(*inbound, name, tasks.clone()).get().await?;
            let said = String::from_utf8_lossy(&said);
            refused += usize::from(status == StatusCode::FORBIDDEN && said.contains(Reason::PlaintextRefused.word()));
        }
        Ok(refused)
    }

    async fn ready(&mut self) -> Result<(), String> {
        for at in 0..self.instances.len() {
            let Some(admin) = self.instances.get(at).map(|instance| Addr::Tcp(instance.admin)) else { break };
            let wait = Wait { admin, timeout: START_CLOCK, app: true };
            let mut waiting = std::pin::pin!(wait.run());
            loop {
                tokio::select! {
                    ready = &mut waiting => break ready.map_err(|error| error.to_string())?,
                    () = sleep(END_REST) => self.alive()?,
                }
            }
        }
        Ok(())
    }

    /// Whether all sidecars run; the error holds the end of the log of the one that does not.
    pub(super) fn alive(&mut self) -> Result<(), String> {
        for running in &mut self.running {
            if let Ok(Some(status)) = running.process.try_wait() {
                let log = fs::read_to_string(&running.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines.get(lines.len().saturating_sub(10)..).unwrap_or_default().join("\n  ");
                return Err(format!("{}'s sidecar ended ({status}); it said:\n  {tail}", running.name));
            }
        }
        Ok(())
    }

    /// The name of the instance whose sidecar listens at `address`.
    pub(super) fn name_of(&self, address: &str) -> Option<&'static str> {
        self.instances.iter().find(|instance| instance.inbound.to_string() == address).map(|instance| instance.name)
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for running in &self.running {
            // One that has ended is not waited for yet, so its process id is still its own.
            let _ = kill_process(Pid::from_child(&running.process), Signal::TERM);
        }
        for running in &mut self.running {
            let ended = (0..END_LOOKS).any(|_| {
                let ended = !matches!(running.process.try_wait(), Ok(None));
                if !ended {
                    thread::sleep(END_REST);
                }
                ended
            });
            if !ended {
                let _ = running.process.kill();
                let _ = running.process.wait();
            }
            running.stdin = None;
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Binds four free ports for each instance, all at once so that they differ, and lets them go.
fn choose_ports() -> io::Result<Vec<Instance>> {
    let mut held = Vec::new();
    let mut free = || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = listener.local_addr();
        held.push(listener);
        addr
    };
    let mut instances = Vec::new();
    for Spec { name, service, .. } in SPECS {
        let (inbound, admin, outbound, app) = (free()?, free()?, free()?, free()?);
        instances.push(Instance { name, service, inbound, admin, outbound, app });
    }
    Ok(instances)
}

/// The control file: where inventory is.
fn control_file(instances: &[Instance]) -> String {
    let endpoints = instances.iter().filter(|instance| instance.service == "inventory");
    let lines: String = endpoints.map(|instance| format!("    - \"{}\"\n", instance.inbound)).collect();
    format!("peers:\n  inventory:\n{lines}")
}

/// Who a service is in the mesh.
fn id(service: &str) -> String {
    format!("spiffe://{DOMAIN}/{service}")
}

/// The file of one sidecar; inventory is found by the control file, cart is named outright. Each takes calls from its one
/// caller only, and knows whom it calls.
fn config(spec: &Spec, own: &Instance, all: &[Instance]) -> String {
    let peer = match spec.next {
        Some("inventory") => {
            format!("peers:\n  inventory: {{ file: peers.yaml, mtls: {{ id: {} }} }}\n", id("inventory"))
        }
        Some(next) => {
            let at = all.iter().find(|instance| instance.service == next).map(|instance| instance.inbound.to_string());
            format!("peers:\n  {next}: {{ static: [\"{}\"], mtls: {{ id: {} }} }}\n", at.unwrap_or_default(), id(next))
        }
        None => String::new(),
    };
    let caller = SPECS.iter().find(|other| other.next == Some(spec.service)).map_or(LOAD, |caller| caller.service);
    let file = |name| format!("{}/{name}", spec.name);
    format!(
        "service: {}\ngrace: {GRACE_SECONDS}s\nadmin: {{ listen: \"{}\" }}\n\
         identity: {{ certificate: {}, key: {}, roots: {} }}\n\
         inbound: {{ listen: \"{}\", app: \"{}\", mtls: strict, allow: {{ from: {} }} }}\n\
         outbound: {{ listen: \"{}\", otherwise: deny }}\n{peer}",
        spec.service,
        own.admin,
        file(CERTIFICATE),
        file(KEY),
        file(ROOTS),
        own.inbound,
        own.app,
        id(caller),
        own.outbound
    )
}

fn launch(exe: &Path, folder: &Path, spec: &Spec, own: &Instance, all: &[Instance]) -> io::Result<Running> {
    let file = folder.join(format!("{}.yaml", spec.name));
    fs::write(&file, config(spec, own, all))?;
    let role = Role {
        name: spec.name.into(),
        listen: own.app,
        delay: spec.delay,
        failing: spec.failing,
        next: spec.next.map(|next| (next.into(), own.outbound)),
    };
    let log_path = folder.join(format!("{}.log", spec.name));
    let log = File::create(&log_path)?;
    let mut command = Command::new(exe);
    command.args(["run", "-c"]).arg(&file).arg("--").arg(exe).arg("demo-service").args(role.to_arguments());
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    let mut process = command.spawn()?;
    let stdin = process.stdin.take();
    Ok(Running { name: spec.name, process, stdin, log: log_path })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_port_is_chosen_twice() {
        let instances = choose_ports().unwrap();
        let all = instances.iter().flat_map(|own| [own.inbound, own.admin, own.outbound, own.app]);
        assert_eq!(all.collect::<BTreeSet<_>>().len(), 4 * SPECS.len());
    }

    #[test]
    fn each_sidecar_knows_whom_its_service_calls() {
        let instances = choose_ports().unwrap();
        let text = |at: usize| config(&SPECS[at], &instances[at], &instances);
        let cart = format!("cart: {{ static: [\"{}\"], mtls: {{ id: spiffe://demo/cart }} }}", instances[1].inbound);
        assert!(text(0).contains(&cart), "{}", text(0));
        assert!(text(1).contains("inventory: { file: peers.yaml, mtls: { id: spiffe://demo/inventory } }"));
        assert!(!text(2).contains("peers"));
        for (at, caller) in [(0, "load"), (1, "web"), (2, "cart"), (3, "cart")] {
            let rule = format!("mtls: strict, allow: {{ from: spiffe://demo/{caller} }}");
            assert!(text(at).contains(&rule), "{}", text(at));
        }
        assert_eq!(control_file(&instances).matches("127.0.0.1").count(), 2);
    }
}
