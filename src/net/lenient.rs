//! A stream whose writes are swallowed once the other end has stopped reading, so that what it said before is still read.
//!
//! A server may answer a request before its body was sent, and close. The rest of the body then fails with a broken
//! pipe or a reset while the answer waits in the receive buffer (RFC 9112 §9.6); hyper would give the answer up.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// `inner`, read to its end even when it can no longer be written to.
pub struct Lenient<T> {
    inner: T,
    deaf: bool,
}

impl<T> Lenient<T> {
    /// Wraps a stream.
    pub fn new(inner: T) -> Self {
        Self { inner, deaf: false }
    }

    /// The stream itself, for what became a tunnel: there a broken pipe is to be seen.
    pub fn into_inner(self) -> T {
        self.inner
    }

    /// The first failure that says the other end stopped reading counts as written, as does everything after it.
    fn judge(&mut self, written: Poll<io::Result<usize>>, whole: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.deaf = true;
                Poll::Ready(Ok(whole))
            }
            other => other,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Lenient<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Lenient<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.deaf {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.judge(written, buf.len())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let whole = || bufs.iter().map(|buf| buf.len()).sum();
        if this.deaf {
            return Poll::Ready(Ok(whole()));
        }
        let written = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.judge(written, whole())
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf { Poll::Ready(Ok(())) } else { Pin::new(&mut this.inner).poll_flush(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.deaf { Poll::Ready(Ok(())) } else { Pin::new(&mut this.inner).poll_shutdown(cx) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test]
    async fn an_answer_is_read_although_nothing_can_be_written_any_more() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut caller = Lenient::new(caller);
        caller.write_all(b"the head").await.unwrap();
        server.readable().await.unwrap();
        server.write_all(b"the answer").await.unwrap();
        // Closed with bytes unread: the caller's next writes are answered by a reset.
        drop(server);
        for _ in 0..100 {
            caller.write_all(&[0; 4096]).await.unwrap();
            if caller.deaf {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = vec![0; 10];
        caller.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"the answer");
    }
}
