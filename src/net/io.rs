//! `Io`: any byte stream the proxy speaks over, without a box for the common kinds.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use super::ours::Ours;
use super::prefixed::Prefixed;

/// A two-way byte stream that can be sent between threads.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

/// A byte stream: TCP and Unix sockets directly, the rest behind one box.
pub enum Io {
    /// A TCP connection.
    Tcp(TcpStream),
    /// One that this process made, where it may come back to it.
    Ours(Box<Ours>),
    /// A Unix stream connection.
    Unix(UnixStream),
    /// One of them whose first bytes were taken to look at.
    Prefixed(Box<Prefixed<Io>>),
    /// TLS over one of them.
    Tls(Box<TlsStream<Io>>),
    /// Anything else: streams of HTTP/2, tests' pipes.
    Boxed(Box<dyn Duplex>),
}

impl Io {
    /// Boxes a stream.
    pub fn boxed(stream: impl Duplex) -> Self {
        Self::Boxed(Box::new(stream))
    }

    /// The stream with what was read of it before; a plain one stays so where nothing was.
    pub fn prefixed(self, first: Bytes) -> Self {
        if first.is_empty() { self } else { Self::Prefixed(Box::new(Prefixed::new(first, self))) }
    }

    /// How long a TCP connection may have sent bytes without an acknowledgement, or a reader that takes nothing, before
    /// the kernel gives it up (RFC 5482); `None` is the system's own patience, which ends for a dead host only.
    pub fn set_user_timeout(&self, limit: Option<Duration>) {
        if let Some(stream) = self.tcp() {
            // As above.
            let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(limit);
        }
    }

    /// The TCP connection under it, where there is one.
    pub fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(stream) => Some(stream),
            Self::Ours(ours) => Some(&ours.stream),
            Self::Prefixed(inner) => inner.get_ref().tcp(),
            Self::Tls(inner) => inner.get_ref().0.tcp(),
            Self::Unix(_) | Self::Boxed(_) => None,
        }
    }
}

/// What can be ended by a reset.
pub trait Resets {
    /// Has the close of a TCP connection be a reset, so that a stream cut short does not look whole at the other end.
    fn reset_on_close(&self);
}

impl Resets for Io {
    fn reset_on_close(&self) {
        if let Some(stream) = self.tcp() {
            // A connection that is gone already needs no reset.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

#[cfg(test)]
impl Resets for tokio::io::DuplexStream {
    fn reset_on_close(&self) {}
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($io) => $call,
            Io::Ours($io) => $call,
            Io::Unix($io) => $call,
            Io::Prefixed($io) => $call,
            Io::Tls($io) => $call,
            Io::Boxed($io) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(io) => io.is_write_vectored(),
            Self::Ours(io) => io.is_write_vectored(),
            Self::Unix(io) => io.is_write_vectored(),
            Self::Prefixed(io) => io.is_write_vectored(),
            Self::Tls(io) => io.is_write_vectored(),
            Self::Boxed(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}
