//! The other end of the admin server, for our own commands: one request, one small answer, one clock.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::ids::Addr;
use crate::net::io::Io;

/// The longest answer that is read; `/state` of a large mesh has some megabytes.
const ANSWER_LIMIT: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("cannot connect to {0}: {1}")]
    Connect(Addr, io::Error),
    /// Something that does not answer as the admin server would.
    #[error("{0} gave no answer that can be read: {1}")]
    Answer(Addr, String),
    /// Nothing within the clock.
    #[error("{0} gave no answer within {1:?}")]
    Late(Addr, Duration),
}

/// Asks the admin server at `addr` for `path` and reads the answer, all within `clock`.
///
/// # Errors
/// When there is none; an answer with an error status is an answer.
pub async fn ask(addr: &Addr, method: Method, path: &str, clock: Duration) -> Result<(StatusCode, Bytes), AskError> {
    timeout(clock, exchange(addr, method, path)).await.unwrap_or_else(|_| Err(AskError::Late(addr.clone(), clock)))
}

async fn exchange(addr: &Addr, method: Method, path: &str) -> Result<(StatusCode, Bytes), AskError> {
    let broken = |error: &dyn std::fmt::Display| AskError::Answer(addr.clone(), error.to_string());
    let io = connect(addr).await.map_err(|error| AskError::Connect(addr.clone(), error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(|error| broken(&error))?;
    let host = addr.tcp().map_or_else(|| "localhost".to_owned(), |addr| addr.to_string());
    let request = Request::builder().method(method).uri(path).header(HOST, host).body(Empty::<Bytes>::new());
    let request = request.map_err(|error| broken(&error))?;
    let answer = async {
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await.map_err(|error| broken(&error))?;
        Ok((status, body.to_bytes()))
    };
    let (mut answer, mut connection) = (std::pin::pin!(answer), std::pin::pin!(connection));
    tokio::select! {
        answer = &mut answer => answer,
        // The connection may end while the last bytes of the answer wait to be read.
        _ = &mut connection => answer.await,
    }
}

async fn connect(addr: &Addr) -> io::Result<Io> {
    match addr {
        Addr::Tcp(addr) => TcpStream::connect(addr).await.map(Io::Tcp),
        Addr::Unix(path) => UnixStream::connect(path).await.map(Io::Unix),
    }
}
