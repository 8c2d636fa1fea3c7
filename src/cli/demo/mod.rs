//! `outrigger demo`: a mesh of small services on this machine, each behind a sidecar process, a steady load and a live
//! view. Needs nothing but loopback and no privileges, and leaves nothing behind.

mod caller;
mod load;
mod mesh;
mod numbers;
mod service;
mod view;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

use crate::life::tasks::Tasks;
use caller::Caller;
use load::Tally;
use mesh::Mesh;
use numbers::Told;
use view::{Frame, View, summary};

/// Between two looks at the mesh.
const LOOK: Duration = Duration::from_secs(1);
/// What a shell gives for a command that ^C ended.
const INTERRUPTED: u8 = 130;

/// Runs the demo for `duration` with `exe` (this program) as sidecars and services. Exits 0 when at least
/// `view::EXPECTED` percent of the requests succeeded, 1 when not or when the mesh could not run, 130 when interrupted.
pub fn run(exe: &Path, duration: Duration, out: &mut dyn Write) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done =
        runtime.map_err(|error| error.to_string()).and_then(|runtime| runtime.block_on(play(exe, duration, out)));
    match done {
        Ok(code) => ExitCode::from(code),
        Err(why) => {
            // Where even the output is closed, the exit code has to say it.
            let _ = writeln!(out, "outrigger: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one of the demo's services, as `demo` starts it.
pub fn service(arguments: &[String], err: &mut dyn Write) -> ExitCode {
    service::run(arguments, err)
}

async fn play(exe: &Path, duration: Duration, out: &mut dyn Write) -> Result<u8, String> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let said = |out: &mut dyn Write, text: &str| writeln!(out, "{text}").and_then(|()| out.flush());
    said(out, "starting four services, each behind a sidecar of its own that takes mutual TLS only …")
        .map_err(|error| error.to_string())?;
    let interrupted = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    // Dropping the future ends the mesh: every process is its own.
    tokio::select! {
        played = observe(exe, duration, out) => played,
        () = interrupted => Ok(INTERRUPTED),
    }
}

async fn observe(exe: &Path, duration: Duration, out: &mut dyn Write) -> Result<u8, String> {
    let mut mesh = Mesh::start(exe).await?;
    let web = mesh.instances.first().map(|web| web.inbound).ok_or("the mesh is empty")?;
    let tally = Arc::new(Mutex::new(Tally::default()));
    let mut view = View::new(std::io::stdout().is_terminal());
    let tasks = Tasks::default();
    let refusals = mesh.refusals(&tasks).await?;
    let first = Told::ask(&mesh).await?;
    let begun = Instant::now();
    let caller = Caller::new(web, "web", tasks.clone()).secured(mesh.load_tls()?);
    let load = tasks.spawn(load::run(Arc::new(caller), tally.clone()));
    let (mut before, mut sent, mut looked) = (first.clone(), 0, begun);
    loop {
        sleep_until((looked + LOOK).min(begun + duration)).await;
        mesh.alive()?;
        let told = Told::ask(&mesh).await?;
        let (now, snapshot) = (Instant::now(), tally.lock().clone());
        let frame = Frame {
            elapsed: now - begun,
            duration,
            tally: &snapshot,
            recent: snapshot.requests() - sent,
            interval: now - looked,
            told: &told,
            before: &before,
            first: &first,
        };
        view.show(&frame, out).map_err(|error| error.to_string())?;
        (before, sent, looked) = (told, snapshot.requests(), now);
        if now >= begun + duration {
            break;
        }
    }
    load.abort();
    let (text, good) = summary(&tally.lock().clone(), begun.elapsed(), &first, &before, refusals);
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| error.to_string())?;
    Ok(if good { 0 } else { 1 })
}
