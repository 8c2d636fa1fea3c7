//! SPIFFE IDs: who a workload is (the SPIFFE ID standard, §2), and which of them a rule means.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";

/// The longest ID in bytes, and the longest trust domain (SPIFFE ID §2.3).
const LONGEST: usize = 2048;
const LONGEST_DOMAIN: usize = 255;

/// The identity of a workload, as `spiffe://shop/checkout`; without a path it is that of the trust domain itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path begins, with its slash.
    path: usize,
}

/// Why a text is no SPIFFE ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotSpiffe {
    /// It begins with something else.
    #[error("a SPIFFE ID begins with `spiffe://`")]
    Scheme,
    /// More than 2048 bytes, or the trust domain more than 255.
    #[error("at most 2048 bytes, 255 of them the trust domain")]
    TooLong,
    /// Nothing stands where the trust domain should, or something that cannot be one: a port, user or upper case.
    #[error("a trust domain has lower-case letters, digits, `.`, `-` and `_`")]
    TrustDomain,
    /// A segment is empty, `.`, `..` or has other characters; a slash at the end.
    #[error("a path has segments of letters, digits, `.`, `-` and `_`, none empty, `.` or `..`")]
    Path,
}

impl SpiffeId {
    /// Who vouches for it: `shop` of `spiffe://shop/checkout`.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.path).unwrap_or_default()
    }

    /// Its path with the leading slash, empty for a trust domain's own ID.
    pub fn path(&self) -> &str {
        self.text.get(self.path..).unwrap_or_default()
    }

    /// The whole.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for SpiffeId {
    type Err = NotSpiffe;

    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        let rest = text.strip_prefix(SCHEME).ok_or(NotSpiffe::Scheme)?;
        let domain = rest.find('/').unwrap_or(rest.len());
        if text.len() > LONGEST || domain > LONGEST_DOMAIN {
            return Err(NotSpiffe::TooLong);
        }
        let (domain, path) = rest.split_at_checked(domain).unwrap_or((rest, ""));
        if !is_trust_domain(domain) {
            return Err(NotSpiffe::TrustDomain);
        }
        if !path.is_empty() && !path.split('/').skip(1).all(is_segment) {
            return Err(NotSpiffe::Path);
        }
        Ok(Self { text: text.into(), path: SCHEME.len() + domain.len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether `text` is a trust domain's name, as `shop.internal`.
pub fn is_trust_domain(text: &str) -> bool {
    let legal = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
    !text.is_empty() && text.len() <= LONGEST_DOMAIN && text.bytes().all(legal)
}

fn is_segment(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    !matches!(text, "" | "." | "..") && text.bytes().all(legal)
}

/// Which identities a rule means: one, as `spiffe://shop/checkout`, or all below a path or a trust domain, as
/// `spiffe://shop/*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdMatch {
    /// This one.
    Exact(SpiffeId),
    /// All whose path goes on after this one's; of an ID without a path, all workloads of its trust domain.
    Below(SpiffeId),
}

impl IdMatch {
    /// Whether it means `id`.
    pub fn means(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(one) => one == id,
            // Whole segments only: what is below `/pay` does not begin with `/payments`.
            Self::Below(above) => id.as_str().strip_prefix(above.as_str()).is_some_and(|rest| rest.starts_with('/')),
        }
    }

    /// Whose trust domain it is about.
    pub fn trust_domain(&self) -> &str {
        let (Self::Exact(id) | Self::Below(id)) = self;
        id.trust_domain()
    }
}

impl FromStr for IdMatch {
    type Err = NotSpiffe;

    fn from_str(text: &str) -> Result<Self, NotSpiffe> {
        match text.strip_suffix("/*") {
            Some(above) => above.parse().map(Self::Below),
            None => text.parse().map(Self::Exact),
        }
    }
}

impl fmt::Display for IdMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "{id}"),
            Self::Below(id) => write!(f, "{id}/*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_standard_allows() {
        for (text, domain, path) in [
            ("spiffe://shop", "shop", ""),
            ("spiffe://shop/checkout", "shop", "/checkout"),
            ("spiffe://shop.example_1-x/ns/A/sa/b.c-d_e", "shop.example_1-x", "/ns/A/sa/b.c-d_e"),
            ("spiffe://1.2.3.4/...", "1.2.3.4", "/..."),
        ] {
            let id: SpiffeId = text.parse().unwrap();
            assert_eq!((id.trust_domain(), id.path(), id.as_str()), (domain, path, text));
            assert_eq!((id.to_string(), format!("{id:?}")), (text.into(), text.into()));
        }
        let longest = format!("spiffe://{}/{}", "d".repeat(255), "p".repeat(2048 - 9 - 256));
        assert!(longest.parse::<SpiffeId>().is_ok());
    }

    #[test]
    fn what_the_standard_forbids() {
        let long = [format!("spiffe://{}", "d".repeat(256)), format!("spiffe://d/{}", "p".repeat(2048 - 10))];
        for (text, why) in [
            ("", NotSpiffe::Scheme),
            ("shop/checkout", NotSpiffe::Scheme),
            ("https://shop/checkout", NotSpiffe::Scheme),
            ("SPIFFE://shop/checkout", NotSpiffe::Scheme),
            ("spiffe:/shop", NotSpiffe::Scheme),
            ("spiffe://", NotSpiffe::TrustDomain),
            ("spiffe:///checkout", NotSpiffe::TrustDomain),
            ("spiffe://Shop/checkout", NotSpiffe::TrustDomain),
            ("spiffe://shop:443/checkout", NotSpiffe::TrustDomain),
            ("spiffe://user@shop/checkout", NotSpiffe::TrustDomain),
            ("spiffe://shöp/checkout", NotSpiffe::TrustDomain),
            ("spiffe://sh%6fp/checkout", NotSpiffe::TrustDomain),
            ("spiffe://shop?q", NotSpiffe::TrustDomain),
            ("spiffe://shop\0/checkout", NotSpiffe::TrustDomain),
            ("spiffe://shop/", NotSpiffe::Path),
            ("spiffe://shop/a/", NotSpiffe::Path),
            ("spiffe://shop//a", NotSpiffe::Path),
            ("spiffe://shop/./a", NotSpiffe::Path),
            ("spiffe://shop/../a", NotSpiffe::Path),
            ("spiffe://shop/a%2fb", NotSpiffe::Path),
            ("spiffe://shop/a?q", NotSpiffe::Path),
            ("spiffe://shop/a#f", NotSpiffe::Path),
            ("spiffe://shop/a b", NotSpiffe::Path),
            ("spiffe://shop/a\0", NotSpiffe::Path),
            ("spiffe://shop/ä", NotSpiffe::Path),
            ("spiffe://shop/a/*", NotSpiffe::Path),
            (&long[0], NotSpiffe::TooLong),
            (&long[1], NotSpiffe::TooLong),
        ] {
            assert_eq!(text.parse::<SpiffeId>(), Err(why), "{text:?}");
        }
    }

    #[test]
    fn a_rule_means_one_or_all_below() {
        for (rule, id, means) in [
            ("spiffe://shop/a", "spiffe://shop/a", true),
            ("spiffe://shop/a", "spiffe://shop/a/b", false),
            ("spiffe://shop/a", "spiffe://shop/A", false),
            ("spiffe://shop/a/*", "spiffe://shop/a/b", true),
            ("spiffe://shop/a/*", "spiffe://shop/a/b/c", true),
            ("spiffe://shop/a/*", "spiffe://shop/a", false),
            ("spiffe://shop/a/*", "spiffe://shop/ab", false),
            ("spiffe://shop/*", "spiffe://shop/a", true),
            ("spiffe://shop/*", "spiffe://shop", false),
            ("spiffe://shop/*", "spiffe://shop.evil/a", false),
            ("spiffe://shop/*", "spiffe://shopping/a", false),
        ] {
            let (parsed, id): (IdMatch, SpiffeId) = (rule.parse().unwrap(), id.parse().unwrap());
            assert_eq!(parsed.means(&id), means, "{rule} {id}");
            assert_eq!((parsed.to_string(), parsed.trust_domain()), (rule.to_owned(), "shop"));
        }
        for text in ["*", "spiffe://*", "spiffe://shop*", "spiffe://shop/a*", "spiffe:///*", "spiffe://shop//*"] {
            assert!(text.parse::<IdMatch>().is_err(), "{text}");
        }
    }
}
