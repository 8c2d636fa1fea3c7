//! A hash that is the same in every process and version, so that all sidecars send a key to the same endpoint.
//!
//! Not for tables that a caller may fill with keys of its choice: it has no secret.

/// The hash of a key or of an endpoint's address (FNV-1a, its bits mixed afterwards).
pub fn hash(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3));
    mix(fnv)
}

/// A number in which every bit depends on every bit of `z` (the finaliser of splitmix64).
pub fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// The `n`th number that belongs to `id`.
pub fn nth(id: u64, n: u64) -> u64 {
    mix(id ^ mix(n.wrapping_add(0x9E37_79B9_7F4A_7C15)))
}

/// `point` as a fraction of 2^64, times `n`.
pub fn scale(point: u64, n: u64) -> u64 {
    ((u128::from(point) * u128::from(n)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_changes() {
        // Written down once: other sidecars have these numbers too.
        for (text, want) in [
            ("", 0xF52A_15E9_A9B5_E89B),
            ("10.0.0.1:80", 0xDBBC_907F_2153_1A73),
            ("10.0.0.2:80", 0x4303_84BE_1C79_A49D),
        ] {
            assert_eq!(hash(text.as_bytes()), want, "{text}: {:#X}", hash(text.as_bytes()));
        }
    }

    #[test]
    fn similar_keys_are_spread() {
        let mut parts = [0u32; 16];
        (0..16_000).for_each(|n| parts[scale(hash(format!("user-{n}").as_bytes()), 16) as usize] += 1);
        assert!(parts.iter().all(|count| (850..1150).contains(count)), "{parts:?}");
    }
}
