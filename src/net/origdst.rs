//! Where a connection was going before the kernel brought it to this proxy.

use std::net::SocketAddr;

use socket2::{SockAddr, SockRef};
use tokio::net::TcpStream;

use crate::plan::capture::How;

/// The address the caller dialled, where the kernel redirected the connection; `None` where it dialled this proxy itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OriginalDst(pub Option<SocketAddr>);

impl OriginalDst {
    /// What explicit mode knows: the caller dialled this proxy itself.
    pub const EXPLICIT: Self = Self(None);

    /// Asks the system, with one call, where a connection that came to the listener at `listen` was going. `ipv4` is
    /// whether the caller's address is one, which a dual-stack socket does not tell.
    pub fn of(stream: &TcpStream, listen: SocketAddr, ipv4: bool, how: How) -> Self {
        let socket = SockRef::from(stream);
        let redirected = || if ipv4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
        // Where nothing is known of a connection it was not redirected.
        let known = |asked: std::io::Result<SockAddr>| {
            let original = asked.ok().as_ref().and_then(SockAddr::as_socket).map(plain);
            original.filter(|addr| !dialled_itself(*addr, listen, stream))
        };
        Self(match how {
            How::Redirect => known(redirected()),
            // What this machine sends itself is redirected all the same.
            How::Tproxy => known(socket.local_addr()).or_else(|| known(redirected())),
        })
    }
}

/// Whether the address is the listener's own, so that nobody was redirected.
fn dialled_itself(addr: SocketAddr, listen: SocketAddr, stream: &TcpStream) -> bool {
    let (listens, here) = (listen.ip().to_canonical(), addr.ip());
    if addr.port() != listen.port() {
        return false;
    }
    // A listener on all addresses has the one at which the connection arrived.
    listens == here || (listens.is_unspecified() && stream.local_addr().is_ok_and(|local| plain(local) == addr))
}

/// An IPv4 address of a dual-stack socket is shown as IPv4.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        ip if ip.is_ipv4() => SocketAddr::new(ip, addr.port()),
        // With its scope, without which a link-local address leads nowhere.
        _ => addr,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_dials_the_listener_itself_was_not_redirected() {
        for (bind, to) in [("127.0.0.1:0", "127.0.0.1"), ("0.0.0.0:0", "127.0.0.2"), ("[::]:0", "127.0.0.1")] {
            let listener = TcpListener::bind(bind).await.unwrap();
            let listen = listener.local_addr().unwrap();
            let _caller = TcpStream::connect((to, listen.port())).await.unwrap();
            let (stream, caller) = listener.accept().await.unwrap();
            for how in [How::Redirect, How::Tproxy] {
                let ipv4 = caller.ip().to_canonical().is_ipv4();
                assert_eq!(OriginalDst::of(&stream, listen, ipv4, how), OriginalDst::EXPLICIT, "{bind} {how:?}");
            }
            // TPROXY: the socket has the address that was dialled, which is not the listener's.
            let elsewhere = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 15006));
            let found = OriginalDst::of(&stream, elsewhere, true, How::Tproxy);
            assert_eq!(found.0.map(|addr| addr.to_string()), Some(format!("{to}:{}", listen.port())));
        }
    }
}
