//! Which addresses are this machine's, asked of the system one by one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::ids::Addr;
use crate::plan::door::Egress;
use crate::plan::egress::{is_own, own_if_here};

/// Never anyone's (RFC 5737): a system that lets it be bound (`ip_nonlocal_bind`) tells nothing by letting others be.
const NOBODYS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Whether calling `addr` would be calling this proxy itself.
pub fn is_itself(addr: &Addr, egress: &Egress) -> bool {
    let here = |addr: SocketAddr| own_if_here(addr, egress) && is_here(addr);
    is_own(addr, egress) || addr.tcp().is_some_and(here)
}

/// Whether this machine has the address, whatever the port. Opens sockets, so it is not for the path of every request.
pub fn is_here(addr: SocketAddr) -> bool {
    bindable(addr) && !bindable(SocketAddr::new(NOBODYS, 0))
}

fn bindable(mut addr: SocketAddr) -> bool {
    // A link-local address keeps its scope, without which it is nobody's.
    if addr.ip().to_canonical().is_ipv4() {
        addr.set_ip(addr.ip().to_canonical());
    }
    addr.set_port(0);
    UdpSocket::bind(addr).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::plan::door::Otherwise;

    /// The address from which this machine calls others. Nothing is sent to find it.
    fn primary() -> Option<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((NOBODYS, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
    }

    #[test]
    fn a_listener_on_all_addresses_is_found_behind_each_of_them() {
        let own = "0.0.0.0:15006".parse().unwrap();
        let egress = Egress { otherwise: Otherwise::Deny, allow: Arc::new([]), own: Arc::new([own]) };
        let itself = |ip: IpAddr, port| is_itself(&Addr::Tcp(SocketAddr::new(ip, port)), &egress);
        assert!(!itself(NOBODYS, 15006));
        assert!(itself([127, 0, 0, 1].into(), 15006));
        // A machine without a network has none.
        if let Some(primary) = primary() {
            assert!(itself(primary, 15006));
            assert!(!itself(primary, 15007));
        }
    }
}
