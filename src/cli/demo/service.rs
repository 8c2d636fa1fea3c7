//! One of the demo's services: answers after a while, fails now and then, may call the next service first.
//!
//! Ends when its stdin does: the demo holds the other end, so that nothing outlives it, whatever happens to it.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::caller::Caller;
use crate::life::tasks::Tasks;

/// After an accept call that failed.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What a service is to be; written and read as the arguments of `demo-service`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) name: String,
    pub(super) listen: SocketAddr,
    /// The middle of the time it takes; each answer takes between half and one and a half of it.
    pub(super) delay: Duration,
    /// Answers of a thousand that fail: half are a 500, half a connection closed without an answer.
    pub(super) failing: u32,
    /// The service it calls first, and its own sidecar's outbound door.
    pub(super) next: Option<(String, SocketAddr)>,
}

impl Role {
    pub(super) fn to_arguments(&self) -> Vec<String> {
        let micros = self.delay.as_micros().to_string();
        let mut words = vec![self.name.clone(), self.listen.to_string(), micros, self.failing.to_string()];
        if let Some((next, via)) = &self.next {
            words.extend([next.clone(), via.to_string()]);
        }
        words
    }

    pub(super) fn from_arguments(arguments: &[String]) -> Option<Self> {
        let [name, listen, micros, failing, next @ ..] = arguments else { return None };
        let next = match next {
            [] => None,
            [next, via] => Some((next.clone(), via.parse().ok()?)),
            _ => return None,
        };
        let delay = Duration::from_micros(micros.parse().ok()?);
        Some(Self { name: name.clone(), listen: listen.parse().ok()?, delay, failing: failing.parse().ok()?, next })
    }
}

/// Runs `outrigger demo-service`.
pub(super) fn run(arguments: &[String], err: &mut dyn Write) -> ExitCode {
    let Some(role) = Role::from_arguments(arguments) else {
        let _ = writeln!(err, "outrigger: demo-service is started by `outrigger demo` only");
        return ExitCode::FAILURE;
    };
    let name = role.name.clone();
    let served = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
        let ended = stdin_ended()?;
        runtime.block_on(async move {
            tokio::select! {
                served = serve(role) => served,
                _ = ended => Ok(()),
                stopped = asked_to_end() => stopped,
            }
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(err, "{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn asked_to_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// A thread of its own, because a read of stdin cannot be cancelled.
fn stdin_ended() -> std::io::Result<oneshot::Receiver<()>> {
    let (tell, ended) = oneshot::channel();
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut stdin = std::io::stdin().lock();
        while matches!(stdin.read(&mut [0; 64]), Ok(1..)) {}
        let _ = tell.send(());
    })?;
    Ok(ended)
}

async fn serve(role: Role) -> std::io::Result<()> {
    let listener = TcpListener::bind(role.listen).await?;
    let tasks = Tasks::default();
    let next = role.next.as_ref().map(|(name, via)| Arc::new(Caller::new(*via, name, tasks.clone())));
    let role = Arc::new(role);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_REST).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (role, next) = (role.clone(), next.clone());
        let service = service_fn(move |_| {
            let (role, next) = (role.clone(), next.clone());
            async move { answer(&role, next.as_deref()).await }
        });
        tasks.spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Hung up instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("hung up")]
struct HungUp;

async fn answer(role: &Role, next: Option<&Caller>) -> Result<Response<Full<Bytes>>, HungUp> {
    sleep(role.delay.mul_f64(0.5 + fastrand::f64())).await;
    let (status, body) = match next {
        _ if fastrand::u32(..1000) < role.failing => {
            if fastrand::bool() {
                return Err(HungUp);
            }
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{} failed\n", role.name))
        }
        None => (StatusCode::OK, format!("{}\n", role.name)),
        Some(next) => relay(role, next).await,
    };
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    Ok(answer)
}

async fn relay(role: &Role, next: &Caller) -> (StatusCode, String) {
    match next.get().await {
        Ok((StatusCode::OK, body)) => (StatusCode::OK, format!("{} < {}", role.name, String::from_utf8_lossy(&body))),
        Ok((status, body)) => {
            let said = String::from_utf8_lossy(&body);
            (StatusCode::BAD_GATEWAY, format!("{} got {}: {said}", role.name, status.as_u16()))
        }
        Err(why) => (StatusCode::BAD_GATEWAY, format!("{}: {why}\n", role.name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_survives_its_way_through_arguments() {
        let mut role = Role {
            name: "cart".into(),
            listen: "127.0.0.1:1".parse().unwrap(),
            delay: Duration::from_millis(3),
            failing: 80,
            next: Some(("inventory".into(), "127.0.0.1:2".parse().unwrap())),
        };
        assert_eq!(Role::from_arguments(&role.to_arguments()), Some(role.clone()));
        role.next = None;
        assert_eq!(Role::from_arguments(&role.to_arguments()), Some(role));
        for bad in [&["cart"][..], &["cart", "x", "1", "1"], &["cart", "127.0.0.1:1", "1", "1", "next"]] {
            let words: Vec<String> = bad.iter().map(ToString::to_string).collect();
            assert_eq!(Role::from_arguments(&words), None, "{bad:?}");
        }
    }
}
