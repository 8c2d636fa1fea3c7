//! Virtual addresses: what the DNS door answers for the hosts of peers, and which host is meant by who dials one.
//!
//! An address follows from the host's name, so it is the same after a restart, after a reload and in every sidecar that
//! knows the name. Where two names fall on one place, the later in the order of names takes the next free one: a name
//! that is added or taken away moves another only if both fall on one place (of a hundred names two do in one file out
//! of fourteen).

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// 240.240.0.0/16, whose addresses are nobody's (RFC 1112 class E), without those that end in 0 or 255.
const PLACES: u16 = 256 * LASTS;
/// Last octets that are used, from 1 on.
const LASTS: u16 = 254;

/// The first half of each IPv4 address.
const V4: [u8; 2] = [240, 240];
/// The first 48 bits of each IPv6 address: the benchmarking network (RFC 5180), which is not routed.
const V6: [u16; 3] = [0x2001, 2, 0];

/// The two addresses of one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtualIp {
    /// In 240.240.0.0/16.
    pub v4: Ipv4Addr,
    /// In 2001:2::/48, with the IPv4 one as its last 32 bits.
    pub v6: Ipv6Addr,
}

/// Which host has which virtual address.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VirtualIps {
    places: HashMap<Arc<str>, u16>,
    names: HashMap<u16, Arc<str>>,
}

impl VirtualIps {
    /// Gives each name its address. Names are in lower case without a trailing dot, in any order; one of them may come
    /// more than once. Those beyond the number of addresses get none.
    pub fn of<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut sorted: Vec<&str> = names.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        let mut table = Self::default();
        for name in sorted.into_iter().take(usize::from(PLACES)) {
            let mut place = preferred(name);
            while table.names.contains_key(&place) {
                place = (place + 1) % PLACES;
            }
            let name: Arc<str> = name.into();
            table.names.insert(place, name.clone());
            table.places.insert(name, place);
        }
        table
    }

    /// The addresses of a host, in lower case without a trailing dot.
    pub fn find(&self, name: &str) -> Option<VirtualIp> {
        self.places.get(name).map(|place| addresses(*place))
    }

    /// The host whose address this is.
    pub fn name(&self, ip: IpAddr) -> Option<&str> {
        self.names.get(&place(ip)?).map(|name| &**name)
    }

    /// Every host with its addresses, in the order of names.
    pub fn all(&self) -> impl Iterator<Item = (&str, VirtualIp)> {
        let mut all: Vec<_> = self.places.iter().map(|(name, place)| (&**name, addresses(*place))).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all.into_iter()
    }
}

/// Whether an address lies in one of the two networks, whether anybody has it or not.
pub fn is_virtual(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().starts_with(&V4),
        IpAddr::V6(v6) => v6.segments().starts_with(&V6),
    }
}

/// 64-bit FNV-1a: no secret is kept by it, only names are spread.
fn preferred(name: &str) -> u16 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
    u16::try_from(hash % u64::from(PLACES)).unwrap_or_default()
}

fn addresses(place: u16) -> VirtualIp {
    let [third, last] = [place / LASTS, place % LASTS + 1].map(|octet| octet.to_be_bytes()[1]);
    let [first, second] = V4;
    let v4 = Ipv4Addr::new(first, second, third, last);
    let [a, b, c] = V6;
    let tail = u16::from_be_bytes([first, second]);
    VirtualIp { v4, v6: Ipv6Addr::new(a, b, c, 0, 0, 0, tail, u16::from_be_bytes([third, last])) }
}

fn place(ip: IpAddr) -> Option<u16> {
    let [third, last] = match ip.to_canonical() {
        IpAddr::V4(v4) => {
            let [_, _, third, last] = v4.octets();
            [third, last]
        }
        IpAddr::V6(v6) => v6.segments()[7].to_be_bytes(),
    };
    let place = u16::from(third) * LASTS + u16::from(last.checked_sub(1)?);
    let VirtualIp { v4, v6 } = addresses(place);
    // What is not exactly one of the two, an address that ends in 255 among them, is no place's.
    (ip.to_canonical() == IpAddr::V4(v4) || ip == IpAddr::V6(v6)).then_some(place)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_are_what_they_always_were() {
        // A change of these breaks whoever has cached one.
        let table = VirtualIps::of(["payments", "payments.shop.internal", "db"]);
        let all: Vec<_> = table.all().map(|(name, ip)| (name, ip.v4.to_string(), ip.v6.to_string())).collect();
        let want = [
            ("db", "240.240.94.160", "2001:2::f0f0:5ea0"),
            ("payments", "240.240.126.35", "2001:2::f0f0:7e23"),
            ("payments.shop.internal", "240.240.124.108", "2001:2::f0f0:7c6c"),
        ];
        assert_eq!(all, want.map(|(name, v4, v6)| (name, v4.to_owned(), v6.to_owned())));
    }

    #[test]
    fn both_ends_of_the_network_lead_back() {
        for (place, v4, v6) in [
            (0, "240.240.0.1", "2001:2::f0f0:1"),
            (253, "240.240.0.254", "2001:2::f0f0:fe"),
            (254, "240.240.1.1", "2001:2::f0f0:101"),
            (PLACES - 1, "240.240.255.254", "2001:2::f0f0:fffe"),
        ] {
            let ip = addresses(place);
            assert_eq!((ip.v4.to_string(), ip.v6.to_string()), (v4.to_owned(), v6.to_owned()));
            assert_eq!((super::place(ip.v4.into()), super::place(ip.v6.into())), (Some(place), Some(place)));
            assert!(is_virtual(ip.v4.into()) && is_virtual(ip.v6.into()) && is_virtual(ip.v4.to_ipv6_mapped().into()));
        }
        for (ip, inside) in [
            ("240.240.0.0", true),
            ("240.240.7.255", true),
            ("240.241.0.1", false),
            ("10.0.0.1", false),
            ("2001:2::f0f0:0", true),
            ("2001:2::1:f0f0:1", true),
            ("2001:2:1::f0f0:1", false),
            ("::1", false),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!((super::place(ip), is_virtual(ip)), (None, inside), "{ip}");
        }
    }

    #[test]
    fn of_two_names_at_one_place_the_later_moves_on() {
        // Found by trying names in turn.
        let mut seen = HashMap::new();
        let (first, second) = (0..)
            .map(|n| format!("n{n}"))
            .find_map(|name| seen.insert(preferred(&name), name.clone()).map(|before| (before, name)))
            .unwrap();
        let (early, late) = if first < second { (first, second) } else { (second, first) };
        let both = VirtualIps::of([late.as_str(), early.as_str()]);
        let at = |table: &VirtualIps, name: &str| super::place(table.find(name).unwrap().v4.into()).unwrap();
        assert_eq!(at(&both, &early), preferred(&early));
        assert_eq!(at(&both, &late), (preferred(&late) + 1) % PLACES);
        assert_eq!(at(&VirtualIps::of([late.as_str()]), &late), preferred(&late), "alone it has its own place");
    }

    #[test]
    fn more_names_than_addresses_leave_some_without() {
        let names: Vec<String> = (0..usize::from(PLACES) + 10).map(|n| format!("n{n}")).collect();
        let table = VirtualIps::of(names.iter().map(String::as_str));
        assert_eq!(table.all().count(), usize::from(PLACES));
    }

    proptest! {
        #[test]
        fn each_name_has_one_address_whatever_the_order(
            names in prop::collection::vec("[a-z]{1,3}(\\.[a-z]{1,3})?", 1..300),
            turn in any::<prop::sample::Index>(),
        ) {
            let table = VirtualIps::of(names.iter().map(String::as_str));
            let mut turned = names.clone();
            turned.rotate_left(turn.index(names.len()));
            prop_assert_eq!(&table, &VirtualIps::of(turned.iter().map(String::as_str)));
            let mut ips = std::collections::HashSet::new();
            for (name, ip) in table.all() {
                prop_assert!(ips.insert(ip.v4));
                prop_assert!(!matches!(ip.v4.octets()[3], 0 | 255));
                prop_assert_eq!(table.name(ip.v4.into()), Some(name));
                prop_assert_eq!(table.name(ip.v6.into()), Some(name));
            }
        }

        #[test]
        fn a_name_that_is_added_moves_no_other_unless_they_meet(
            names in prop::collection::vec("[a-z]{1,8}", 1..40),
            more in "[a-z]{1,8}",
        ) {
            let before = VirtualIps::of(names.iter().map(String::as_str));
            let after = VirtualIps::of(names.iter().map(String::as_str).chain([more.as_str()]));
            let moved = before.all().filter(|(name, ip)| after.find(name) != Some(*ip)).count();
            let meets = before.names.contains_key(&preferred(&more));
            prop_assert!(moved == 0 || meets);
        }
    }
}
