//! One file per command; `main.rs` reads the arguments and calls them.

pub mod ca;
pub mod check;
pub mod config;
pub mod demo;
pub mod explain;
pub mod redirect;
pub mod schema;
pub mod strict;
pub mod wait;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};

use crate::app;
use crate::config::ADMIN_VARIABLE;
use crate::config::facts::Facts;
use crate::config::units;
use crate::control::inside;

/// What is read of the process's surroundings, once.
pub struct Environment {
    variables: Arc<HashMap<String, String>>,
    /// This program's own file, for commands that start it again.
    exe: PathBuf,
}

impl Environment {
    /// Reads it. Variables that are not UTF-8 are as good as unset.
    pub fn gather() -> Self {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        Self {
            variables: Arc::new(std::env::vars_os().filter_map(text).collect()),
            exe: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("outrigger")),
        }
    }

    /// A variable's value.
    pub fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).cloned()
    }

    /// The value of one of our own variables, where an empty one is as good as none.
    fn setting(&self, name: &str) -> Option<String> {
        self.variable(name).filter(|value| !value.trim().is_empty())
    }

    /// This program's own file.
    pub fn exe(&self) -> &Path {
        &self.exe
    }

    /// Every variable, for what outlives the start.
    pub fn variables(&self) -> Arc<HashMap<String, String>> {
        self.variables.clone()
    }
}

/// A service-mesh sidecar proxy that explains itself.
#[derive(Parser)]
#[command(version, about, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// What clap itself ends with.
const WRONG_COMMAND_LINE: u8 = 2;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 something is wrong and was said, 2 the command line is wrong; \
    `run -- APP` gives the app's own code, 128+n where signal n ended it, 126 or 127 where it could not be started.\n\
    Environment: OUTRIGGER_CONFIG, OUTRIGGER_ADMIN, OUTRIGGER_LOG (such as `info`, `outrigger=debug`).";

#[derive(Subcommand)]
enum Command {
    /// Run the proxy; with APP: proxy first, then the app, and exit with the app's code
    #[command(after_help = "Example: outrigger run -c outrigger.yaml -- python3 -m http.server --bind 127.0.0.1 8080")]
    Run {
        #[command(flatten)]
        file: File,
        /// The service to start once the proxy is ready
        #[arg(last = true, value_name = "APP")]
        app: Vec<OsString>,
    },
    /// Say everything that is wrong with a file, with line, column and a hint
    #[command(after_help = "Examples: outrigger check -c outrigger.yaml\n          \
        outrigger check --strict    # of a sidecar that runs with `inbound.mtls: permissive`")]
    Check {
        #[command(flatten)]
        file: File,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        /// Ask the running sidecar instead who would be refused if `inbound.mtls` were `strict`
        #[arg(long, conflicts_with_all = ["json", "config"])]
        strict: bool,
        /// With --strict: where the sidecar's admin server listens, IP:PORT or unix:/PATH
        #[arg(long, value_name = "ADDR", requires = "strict")]
        admin: Option<String>,
    },
    /// Print every value in force with its origin
    #[command(after_help = "Example: outrigger config -c outrigger.yaml")]
    Config {
        #[command(flatten)]
        file: File,
        /// Print the reference instead: a file with every key at its default and what it is for
        #[arg(long, conflicts_with = "config")]
        reference: bool,
    },
    /// Say what would become of a request or a captured connection, and which line of the file says so; nothing is sent
    #[command(
        after_help = "Examples: outrigger explain http://payments/v2/x -H 'x-canary: 1' -c outrigger.yaml\n          \
        outrigger explain --dialled 10.1.2.3:5432 -c outrigger.yaml\n\
        An https URL is a CONNECT through the sidecar; a URL with the address of a port of its own goes to that port.\n\
        With --dialled a URL is what is said on the captured connection (https: its server name)."
    )]
    Explain {
        /// The request's URL, as the service (or with --inbound its caller) asks for it
        #[arg(value_parser = explain::url, required_unless_present = "dialled")]
        url: Option<http::Uri>,
        /// Transparent mode: the address to which the captured connection was going; without a URL it is opaque bytes
        #[arg(long, value_name = "IP:PORT", value_parser = explain::dialled)]
        dialled: Option<std::net::SocketAddr>,
        /// With --dialled: ask the sidecar whose admin server is there, IP:PORT or unix:/PATH, for its peers' endpoints
        #[arg(long, value_name = "ADDR", requires = "dialled")]
        admin: Option<String>,
        /// A field of the request, `name: value`
        #[arg(short = 'H', long = "header", value_name = "FIELD", value_parser = explain::field)]
        fields: Vec<(http::HeaderName, http::HeaderValue)>,
        /// The request's method
        #[arg(short = 'X', long = "method", default_value = "GET")]
        method: http::Method,
        /// The request comes from the network to the service
        #[arg(long)]
        inbound: bool,
        /// With --inbound: who the caller has proven to be
        #[arg(long, value_name = "SPIFFE-ID", requires = "inbound")]
        identity: Option<crate::spiffe::SpiffeId>,
        /// With --inbound: the caller's address
        #[arg(long, value_name = "IP", requires = "inbound")]
        address: Option<std::net::IpAddr>,
        /// With --inbound: what a good token would say; a token that is given itself is verified only by keys in files
        #[arg(long, value_name = "JSON", requires = "inbound", value_parser = explain::claims)]
        claims: Option<crate::plan::claims::Claims>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: File,
    },
    /// Print the JSON Schema of the file, for editors
    #[command(after_help = "Example: outrigger schema > outrigger.schema.json")]
    Schema {
        /// The schema of the control file instead
        #[arg(long)]
        control_file: bool,
    },
    /// Block until the sidecar is ready, for start scripts
    #[command(after_help = "Example: outrigger wait --timeout 30s && exec ./my-service")]
    Wait {
        /// How long to wait at most
        #[arg(long, default_value = "30s", value_parser = duration)]
        timeout: Duration,
        /// Where the sidecar's admin server listens: IP:PORT or unix:/PATH
        #[arg(long, value_name = "ADDR")]
        admin: Option<String>,
        /// Wait until the app takes connections too
        #[arg(long)]
        app: bool,
    },
    /// A certificate authority for development and small meshes
    Ca {
        /// What it is to do
        #[command(subcommand)]
        command: ca::Command,
    },
    /// The kernel's rules for transparent interception: what the service sends and is sent goes through the sidecar
    Redirect {
        /// What is to be done
        #[command(subcommand)]
        command: redirect::Command,
    },
    /// Run a mesh of small services on this machine, with faults, and a live view
    #[command(after_help = "Example: outrigger demo --for 20s")]
    Demo {
        /// How long it runs
        #[arg(long = "for", default_value = "20s", value_parser = duration, value_name = "TIME")]
        duration: Duration,
    },
    /// The process that holds an app's network, as `run` starts it
    #[command(name = inside::HOLD, hide = true)]
    HoldNetwork(#[command(flatten)] inside::hold::Network),
    /// What becomes the app, as `run` starts it
    #[command(name = inside::LAUNCH, hide = true)]
    LaunchApp {
        #[command(flatten)]
        place: inside::launch::Place,
        /// The app
        #[arg(last = true)]
        app: Vec<OsString>,
    },
    /// One of the demo's services
    #[command(hide = true)]
    DemoService {
        /// What it is to be, as the demo writes it
        #[arg(allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// The configuration that a command is about.
#[derive(clap::Args)]
pub struct File {
    /// The configuration [default: $OUTRIGGER_CONFIG, ./outrigger.yaml, /etc/outrigger/outrigger.yaml]
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl File {
    /// The file that is meant, whether or not it exists.
    fn path(&self, environment: &Environment) -> PathBuf {
        let named = self.config.clone().or_else(|| environment.setting("OUTRIGGER_CONFIG").map(PathBuf::from));
        named.unwrap_or_else(|| {
            let (here, system) = ("outrigger.yaml", "/etc/outrigger/outrigger.yaml");
            let found = if !Path::new(here).exists() && Path::new(system).exists() { system } else { here };
            PathBuf::from(found)
        })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    units::duration(text).map_err(|error| error.to_string())
}

/// Runs the command. Where the admin server is comes from `--admin`, OUTRIGGER_ADMIN, or the default port.
pub fn run(arguments: Arguments, environment: &Environment) -> ExitCode {
    let variables = |name: &str| environment.variable(name);
    let (mut out, mut err) = (std::io::stdout().lock(), std::io::stderr());
    match arguments.command {
        Command::Run { app, .. }
            if app.is_empty() && std::env::args_os().next_back().is_some_and(|last| last == "--") =>
        {
            complain(
                &mut err,
                "run: no program after `--`: name the app to start, or leave `--` away to run without one",
            );
            ExitCode::from(WRONG_COMMAND_LINE)
        }
        Command::Run { file, app } => {
            drop(out);
            app::run(&file.path(environment), &app, environment)
        }
        Command::Check { strict: true, admin, .. } => {
            let admin = admin.or_else(|| environment.setting(ADMIN_VARIABLE));
            strict::run(admin.as_deref(), &mut out, &mut err)
        }
        Command::Check { file, json, .. } => {
            check::run(&file.path(environment), json, &Facts::gather(), &variables, &mut out)
        }
        Command::Config { reference: true, .. } => config::run_reference(&mut out),
        Command::Config { file, .. } => {
            config::run(&file.path(environment), &Facts::gather(), &variables, &mut out, &mut err)
        }
        Command::Explain { url, dialled, admin, fields, method, inbound, identity, address, claims, json, file } => {
            let path = file.path(environment);
            let living = match admin.as_deref().map(explain::Living::ask).transpose() {
                Ok(living) => living,
                Err(why) => return complain(&mut err, &format!("explain: {why}")),
            };
            let asking = explain::Asking { url, dialled, living, method, fields, inbound, identity, address, claims };
            explain::run(&path, &asking, json, &Facts::gather(), &variables, (&mut out, &mut err))
        }
        Command::Schema { control_file } => schema::run(control_file, &mut out),
        Command::Wait { timeout, admin, app } => {
            let admin = admin.or_else(|| environment.setting(ADMIN_VARIABLE));
            wait::run(admin.as_deref(), timeout, app, &mut err)
        }
        Command::Ca { command } => ca::run(command, SystemTime::now(), &mut out, &mut err),
        Command::Redirect { command } => {
            let path = |file: &File| file.path(environment);
            redirect::run(command, path, &Facts::gather(), &variables, (&mut out, &mut err))
        }
        Command::Demo { duration } => demo::run(&environment.exe, duration, &mut out),
        // The other end of its standard input is what it works for.
        Command::HoldNetwork(network) => inside::hold::hold(&network, std::io::stdin()),
        Command::LaunchApp { place, app } => inside::launch::launch(&place, &app),
        Command::DemoService { arguments } => demo::service(&arguments, &mut err),
    }
}

/// Says why a command cannot go on.
pub fn complain(err: &mut dyn Write, message: &str) -> ExitCode {
    // Where even stderr is closed, the exit code has to say it.
    let _ = writeln!(err, "outrigger: {message}");
    ExitCode::FAILURE
}
