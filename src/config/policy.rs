//! Who may ask what of the service: the rules below `inbound.allow` and `inbound.deny`.

use super::collect::{Named, OneOrMore};
use super::jwt::Claims;
use super::kind::{Scalar, Set, Wrong, words};
use super::route::{MethodName, Path, TextMatch};
use super::section::section;
use super::units::Count;
use super::values::{HostEntry, Network, SpiffeIds};

words! {
    /// What happens to what the rules keep out.
    Authorization {
        /// It is refused.
        Enforce "enforce";
        /// It is let in and told of.
        Audit "audit";
    }
}

section! {
    /// Requests and connections: all that is given must hold.
    AccessRule {
        /// Who calls, by identity; a caller in plaintext has none.
        from "from": Option<Set<OneOrMore<SpiffeIds>>> = Unset("spiffe://shop/frontend");
        /// One of these methods.
        methods "methods": Option<Set<OneOrMore<MethodName>>> = Unset("[GET, POST]");
        /// The path; `/*` at the end means it and all below it.
        paths "paths": Option<Set<OneOrMore<PathRange>>> = Unset("[/orders/*]");
        /// The host that is named, with or without a port.
        hosts "hosts": Option<Set<OneOrMore<HostEntry>>> = Unset("[orders.shop]");
        /// Fields; a text is exact.
        headers "headers": Option<Set<Named<TextMatch>>> = Unset("{ x-tier: gold }");
        /// What the claims of a verified token say: a text or a list of such.
        claims "claims": Option<Set<Claims>> = Unset("{ scope: orders.write }");
        /// Networks that the connection comes from.
        addresses "addresses": Option<Set<OneOrMore<Network>>> = Unset("[10.0.0.0/8]");
        /// Ports that were dialled; in `deny` also others of the same app.
        ports "ports": Option<Set<OneOrMore<Count<1, 65535>>>> = Unset("[15006]");
    }
}

section! {
    /// A path that health checks ask.
    Probe = "path" {
        /// This path alone.
        path "path": Option<Set<Path>> = Required("/healthz");
    }
}

/// A path, or with a last segment of `*` it and all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRange {
    /// Without the `/*`.
    pub path: String,
    /// Whether what lies below it is meant too.
    pub below: bool,
}

impl Scalar for PathRange {
    const NAME: &'static str = "path-range";

    fn expected() -> String {
        "a path such as `/healthz` or `/orders/*`".into()
    }

    fn pattern() -> String {
        r"^/[^?#*\s]*$|^(/[^?#*\s]+)?/\*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        if !text.starts_with('/') {
            return Err(Wrong::meant(format!("/{text}")));
        }
        let (path, below) = text.strip_suffix("/*").map_or((text, false), |path| (path, true));
        if path.contains('*') {
            return Err(Wrong::because(
                "a `*` stands for whole segments at the end: write `/*`, or `%2A` for the sign",
            ));
        }
        match Path::parse(if path.is_empty() { "/" } else { path }) {
            Ok(_) => Ok(Self { path: path.to_owned(), below }),
            Err(wrong) => Err(wrong),
        }
    }

    fn write(&self) -> String {
        format!("{}{}", self.path, if self.below { "/*" } else { "" })
    }
}
