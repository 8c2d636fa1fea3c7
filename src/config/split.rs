//! Who gets the requests of a route: the parts of a split, and the peer that gets copies.

use super::collect::Pairs;
use super::kind::{Set, words};
use super::section::section;
use super::units::{Count, Share};
use super::values::Name;

section! {
    /// A part of a split; short form: its weight.
    Part = "weight" {
        /// Its share relative to the others.
        weight "weight": Set<Count<0, 1_000_000>> = Is("1");
        /// The peer, where the name of the part is not the peer's.
        peer "peer": Option<Set<Name>> = Follows("payments");
        /// Only endpoints with these facts in their metadata.
        subset "subset": Option<Set<Pairs>> = Unset("{ version: \"2\" }");
        /// Who takes a request where no endpoint fits `subset`: none, or any of them.
        otherwise "otherwise": Set<Otherwise> = Is("none");
    }
}

words! {
    /// What happens where no endpoint fits a subset.
    Otherwise {
        /// The request fails.
        None "none";
        /// Any endpoint of the peer will do.
        Any "any";
    }
}

section! {
    /// A peer that gets copies. At most 100 are under way at one time, and none of a body over 64 KiB; what is beyond
    /// is dropped and counted.
    Mirror {
        /// Who gets them.
        peer "peer": Option<Set<Name>> = Required("payments-next");
        /// The share of the requests that is copied.
        share "share": Set<Share> = Is("100%");
    }
}
