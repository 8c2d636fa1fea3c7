//! The sockets hickory asks through: UDP ones are connected to their server.
//!
//! Then the kernel drops what others send, and a server that is not there is known at once instead of after the timeout.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use hickory_resolver::net::runtime::{DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use parking_lot::Mutex;
use tokio::io::{Interest, ReadBuf};
use tokio::net::UdpSocket;

/// tokio's sockets and timers, with [`Udp`] in place of its UDP socket.
#[derive(Clone, Default)]
pub struct Connected(TokioRuntimeProvider);

impl RuntimeProvider for Connected {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Udp;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.0.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        bind: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.0.connect_tcp(server, bind, timeout)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        Box::pin(async move {
            let socket = Arc::new(UdpSocket::bind(local).await?);
            socket.connect(server).await?;
            let refusal = Mutex::new(refusal(socket.clone()).boxed());
            Ok(Udp { socket, server, refusal })
        })
    }
}

/// A UDP socket connected to one server, whose reader also wakes for ICMP errors: the kernel reports those without
/// making the socket readable, and tokio wakes a reader for readable only.
pub struct Udp {
    socket: Arc<UdpSocket>,
    server: SocketAddr,
    refusal: Mutex<BoxFuture<'static, io::Error>>,
}

async fn refusal(socket: Arc<UdpSocket>) -> io::Error {
    loop {
        if let Err(error) = socket.ready(Interest::ERROR).await {
            return error;
        }
        match socket.take_error() {
            Ok(Some(error)) | Err(error) => return error,
            // Nothing is there (any more): "would block" makes tokio wait for the next event.
            Ok(None) => {
                let _ = socket.try_io(Interest::ERROR, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            }
        }
    }
}

impl DnsUdpSocket for Udp {
    type Time = TokioTime;

    fn poll_recv_from(&self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut buf = ReadBuf::new(buf);
        match self.socket.poll_recv(cx, &mut buf) {
            Poll::Ready(result) => Poll::Ready(result.map(|()| (buf.filled().len(), self.server))),
            Poll::Pending => {
                let mut waiting = self.refusal.lock();
                waiting.poll_unpin(cx).map(|error| {
                    // The next reader waits for the next error.
                    *waiting = refusal(self.socket.clone()).boxed();
                    Err(error)
                })
            }
        }
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, buf: &[u8], _: SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, buf)
    }
}
