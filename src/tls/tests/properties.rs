//! What holds of every certificate and every refusal, not only of those in the tables.

use std::io;
use std::sync::OnceLock;
use std::time::Duration;

use proptest::prelude::*;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::kit::*;
use crate::spiffe::SpiffeId;
use crate::tls::facts::Facts;
use crate::tls::identity::Identity;
use crate::tls::untrusted::{Role, Untrusted};

fn world() -> &'static (Authority, Chain, Identity) {
    static WORLD: OnceLock<(Authority, Chain, Identity)> = OnceLock::new();
    WORLD.get_or_init(|| {
        let root = Authority::root("root");
        let chain = root.issue("spiffe://shop/service");
        let identity = chain.identity(&root);
        (root, chain, identity)
    })
}

fn refusals() -> impl Strategy<Value = Untrusted> {
    let id = || "[a-z]{1,9}".prop_map(|path| format!("spiffe://shop/{path}").parse::<SpiffeId>().unwrap());
    let time = || any::<u32>().prop_map(|seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds.into())));
    let role = prop_oneof![Just(Role::Client), Just(Role::Server)];
    prop_oneof![
        prop::sample::select(vec![
            Untrusted::NoCertificate,
            Untrusted::BadEncoding,
            Untrusted::CriticalExtension,
            Untrusted::NoId,
            Untrusted::UnknownIssuer,
            Untrusted::Chain("a CA constrains names"),
            Untrusted::LeafIsCa,
            Untrusted::Weak,
            Untrusted::NotItsKey,
            Untrusted::Revoked,
            Untrusted::UnknownRevocation,
        ]),
        (2usize..9).prop_map(|count| Untrusted::SeveralIds { count }),
        (any::<String>(), any::<String>()).prop_map(|(id, why)| Untrusted::BadId { id, why }),
        (any::<String>(), id()).prop_map(|(wanted, got)| Untrusted::WrongIdentity { wanted, got }),
        id().prop_map(|id| Untrusted::TrustDomain { id }),
        time().prop_map(|since| Untrusted::Expired { since }),
        time().prop_map(|from| Untrusted::NotYetValid { from }),
        time().prop_map(|since| Untrusted::StaleRevocation { since }),
        role.prop_map(|role| Untrusted::NotForThis { role }),
    ]
}

proptest! {
    #[test]
    fn a_refusal_is_found_again_in_the_error_of_a_handshake(why in refusals()) {
        let error = rustls::Error::from(why.clone());
        prop_assert_eq!(Untrusted::of(&error), Some(why.clone()));
        prop_assert_eq!(Untrusted::of_io(&io::Error::new(io::ErrorKind::InvalidData, error)), Some(why));
    }

    #[test]
    fn any_changed_bit_makes_it_worthless(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (_, chain, us) = world();
        let mut leaf = chain.certificates[0].to_vec();
        let at = at.index(leaf.len());
        leaf[at] ^= 1 << bit;
        let leaf = CertificateDer::from(leaf);
        let judged = us.identify_client(Some(std::slice::from_ref(&leaf)), now());
        prop_assert!(judged.is_err(), "byte {} bit {}: {:?}", at, bit, judged);
    }

    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..400) {
        let (_, chain, us) = world();
        let _ = Facts::read(&bytes);
        // Bytes that begin like a certificate get further.
        let leaf = &chain.certificates[0];
        let mixed = [leaf.get(..cut).unwrap_or(leaf), &bytes].concat();
        let _ = Facts::read(&mixed);
        for bytes in [bytes, mixed] {
            prop_assert!(us.identify_client(Some(&[CertificateDer::from(bytes)]), now()).is_err());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_uri_that_is_an_id_with_a_path_and_nothing_else(
        list in prop::collection::vec(
            (
                prop_oneof![3 => Just(URI), 1 => Just(0x82u8)],
                prop_oneof![
                    3 => "spiffe://shop/[a-z]{1,3}",
                    1 => "spiffe://shop(/[a-z.%]{0,3}){0,2}",
                    1 => "[ -~]{0,12}",
                ],
            ),
            0..=3,
        ),
    ) {
        let (root, _, us) = world();
        let names: Vec<(u8, &[u8])> = list.iter().map(|(tag, name)| (*tag, name.as_bytes())).collect();
        let chain = root.issue_names(&names, |_| {});
        let mut uris = list.iter().filter(|(tag, _)| *tag == URI).map(|(_, name)| name.parse::<SpiffeId>());
        let expected = match (uris.next(), uris.next()) {
            (Some(Ok(id)), None) if !id.path().is_empty() && id.trust_domain() == "shop" => Some(id),
            _ => None,
        };
        prop_assert_eq!(us.identify_client(Some(&chain.certificates), now()).ok(), expected);
    }
}
