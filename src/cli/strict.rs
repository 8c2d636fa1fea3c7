//! `outrigger check --strict`: asks a running sidecar who would be refused if its `inbound.mtls` were `strict`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ca::words::span;
use super::complain;
use super::wait::DEFAULT_ADMIN;
use crate::control::admin::client::ask;
use crate::ids::Addr;
use crate::telemetry::plaintext::{PlaintextClient, PlaintextState};

/// The question takes no longer.
const CLOCK: Duration = Duration::from_secs(10);

/// What is read of `/state`.
#[derive(Deserialize)]
struct State {
    plaintext: Option<PlaintextState>,
}

/// Runs the command; `admin` is what `--admin` or OUTRIGGER_ADMIN says. Exit codes: 0 nobody would be refused, 1 somebody
/// would, or it cannot be told.
pub fn run(admin: Option<&str>, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    let state: State = match state(admin.unwrap_or(DEFAULT_ADMIN)) {
        Ok(state) => state,
        Err(why) => return complain(err, &why),
    };
    let Some(plaintext) = state.plaintext else {
        return complain(err, "no inbound door is `mtls: permissive`, so nobody in plaintext is let in and counted");
    };
    let nobody = plaintext.clients.is_empty();
    match writeln!(out, "{}", sentence(&plaintext)) {
        Ok(()) if nobody => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// What the sidecar says of itself whose admin server listens there.
///
/// # Errors
/// It does not answer as one.
pub(super) fn state<T: DeserializeOwned>(admin: &str) -> Result<T, String> {
    let addr: Addr = admin.parse().map_err(|error| format!("--admin {admin}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    match runtime.block_on(ask(&addr, Method::GET, "/state", CLOCK)) {
        Ok((StatusCode::OK, body)) => {
            serde_json::from_slice(&body).map_err(|error| format!("{addr}: /state cannot be read: {error}"))
        }
        Ok((status, _)) => Err(format!("{addr}: /state answered {status}; is it a sidecar's admin server?")),
        Err(error) => Err(format!("{error}; is it running, with `admin: {addr}`?")),
    }
}

fn sentence(plaintext: &PlaintextState) -> String {
    let time = span(Duration::from_secs(plaintext.permissive_seconds));
    if plaintext.clients.is_empty() {
        return format!(
            "No client would be refused under `strict`: nobody came in plaintext in the {time} that it has been `permissive`."
        );
    }
    let plural = |n: u64| if n == 1 { "" } else { "s" };
    let client = |PlaintextClient { client, connections, last_seconds_ago }: &PlaintextClient| {
        let last = span(Duration::from_secs(*last_seconds_ago));
        format!("{client} ({connections} connection{}, last {last} ago)", plural(*connections))
    };
    let clients: Vec<_> = plaintext.clients.iter().map(client).collect();
    let (count, list) = (clients.len() as u64, clients.join(", "));
    let more = match plaintext.forgotten {
        0 => String::new(),
        n => format!(", and others with {n} connection{} before them", plural(n)),
    };
    format!(
        "{count} client{} would be refused under `strict`: {list}{more}; seen in the {time} that it has been `permissive`.",
        plural(count)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_in_words() {
        let client = |client: &str, connections, last_seconds_ago| PlaintextClient {
            client: client.into(),
            connections,
            last_seconds_ago,
        };
        for (clients, forgotten, says) in [
            (
                vec![],
                0,
                "No client would be refused under `strict`: nobody came in plaintext in the 1 h that it has \
                 been `permissive`.",
            ),
            (
                vec![client("unix", 1, 0)],
                0,
                "1 client would be refused under `strict`: unix (1 connection, last 0 s ago); seen in the \
                 1 h that it has been `permissive`.",
            ),
            (
                vec![client("10.0.0.7", 12, 3), client("::2", 1, 61)],
                4,
                "2 clients would be refused under `strict`: 10.0.0.7 (12 connections, last 3 s ago), ::2 (1 connection, \
                 last 1 m 1 s ago), and others with 4 connections before them; seen in the 1 h that it has been \
                 `permissive`.",
            ),
        ] {
            assert_eq!(sentence(&PlaintextState { permissive_seconds: 3600, clients, forgotten }), says);
        }
    }
}
