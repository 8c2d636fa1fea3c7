//! An HTTP/2 stream as a byte stream, for tunnels (RFC 8441, CONNECT): flow control both ways, half-close kept.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::unsent::Sending;

/// The most that is taken from a writer at once; the rest waits for the next call.
const PIECE: usize = 64 * 1024;

/// Both halves of a stream after its heads were exchanged. `K` is whatever must live as long as the stream does.
///
/// Reading gives window back as bytes are taken; writing waits for window. Shutting down ends our half (END_STREAM)
/// and leaves the other one open; dropping earlier resets the stream (CANCEL).
pub struct StreamIo<K = ()> {
    send: Sending,
    recv: RecvStream,
    unread: Bytes,
    read_end: bool,
    write_end: bool,
    _keep: K,
}

impl<K> StreamIo<K> {
    /// Joins the halves.
    pub fn new(send: Sending, recv: RecvStream, keep: K) -> Self {
        Self { send, recv, unread: Bytes::new(), read_end: false, write_end: false, _keep: keep }
    }

    /// Why the peer no longer takes bytes.
    fn refused(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset(reason),
            Poll::Ready(Err(error)) => broken(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl<K: Unpin> AsyncRead for StreamIo<K> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Empty DATA frames are no end of file: look for the next one.
        while this.unread.is_empty() && !this.read_end {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(data)) => this.unread = data,
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => this.read_end = true,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => this.read_end = true,
            }
        }
        let taken = this.unread.split_to(this.unread.len().min(buf.remaining()));
        buf.put_slice(&taken);
        if !taken.is_empty() {
            // An error means the stream is gone; the next read reports it.
            let _ = this.recv.flow_control().release_capacity(taken.len());
        }
        Poll::Ready(Ok(()))
    }
}

impl<K: Unpin> AsyncWrite for StreamIo<K> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.write_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.stream.reserve_capacity(buf.len().min(PIECE));
        let room = match ready!(this.send.poll_room(cx)) {
            Some(Ok(room)) => room,
            Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            None => return Poll::Ready(Err(this.refused(cx))),
        };
        let taken = buf.get(..room.min(buf.len()).min(PIECE)).unwrap_or_default();
        match this.send.send(Bytes::copy_from_slice(taken), false) {
            Ok(()) => Poll::Ready(Ok(taken.len())),
            Err(_) => Poll::Ready(Err(this.refused(cx))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task writes; there is nothing of ours to push.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.write_end, true) {
            return Poll::Ready(Ok(()));
        }
        match this.send.send(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(_) => match this.send.stream.poll_reset(cx) {
                // Whoever reset with NO_ERROR or CANCEL wanted no more: our end is as good as said.
                Poll::Ready(Ok(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED)) => Poll::Ready(Ok(())),
                _ => Poll::Ready(Err(this.refused(cx))),
            },
        }
    }
}

fn reset(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, h2::Error::from(reason))
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}
