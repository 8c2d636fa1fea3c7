//! The section `inbound.jwt`: whose JSON Web Tokens are believed, and where requests carry them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::collect::{Keyed, OneOrMore, OrAny, OrSystem};
use super::kind::{Scalar, Set, Wrong, words};
use super::route::TextMatch;
use super::section::section;
use super::units::Span;
use super::values::{FieldName, FilePath, is_host};

/// What the claims of a token must say.
pub type Claims = Keyed<OneOrMore<TextMatch>>;

words! {
    /// What becomes of a token once it is verified.
    Forward {
        /// The service gets it too.
        Keep "keep";
        /// The service does not get it.
        Strip "strip";
    }
}

section! {
    /// An issuer whose tokens are believed.
    Jwt {
        /// Who it is: `iss` must be exactly this.
        issuer "issuer": Option<Set<ClaimText>> = Required("https://login.shop");
        /// For whom its tokens must be: `aud` must name one of these; or `any`.
        audiences "audiences": Option<Set<OrAny<OneOrMore<ClaimText>>>> = Required("[checkout]");
        /// Its public keys, a JWK set: a file, or a URL that is asked again and again.
        jwks "jwks": Option<Set<KeysAt>> = Required("https://login.shop/jwks.json");
        /// Whom to trust where the URL is: `system`, or a PEM file.
        roots "roots": Set<OrSystem<FilePath>> = Is("system");
        /// Where requests carry the token.
        token "token": Set<TokenPlace> = Is("authorization");
        /// How far clocks may differ.
        leeway "leeway": Set<Span> = Is("60s");
        /// Whether the service gets the token too; `strip` is for tokens in fields.
        forward "forward": Set<Forward> = Is("keep");
    }
}

section! {
    /// Where a token stands: in exactly one of these; short form: the field.
    TokenPlace = "header" {
        /// A field, after the word `Bearer` (which only `authorization` demands).
        header "header": Option<Set<FieldName>> = Unset("authorization");
        /// A cookie.
        cookie "cookie": Option<Set<PlaceName>> = Unset("session");
        /// A parameter of the query.
        query "query": Option<Set<PlaceName>> = Unset("access_token");
    }
}

/// A text of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimText(pub String);

impl Scalar for ClaimText {
    const NAME: &'static str = "claim-text";

    fn expected() -> String {
        "a text that is not empty".into()
    }

    fn pattern() -> String {
        "^.+$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let fits = !text.is_empty() && !text.contains(char::is_control);
        if fits { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// The name of a cookie or of a parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PlaceName(pub String);

impl Scalar for PlaceName {
    const NAME: &'static str = "token-name";

    fn expected() -> String {
        "a name of letters, digits, `-`, `_`, `.` and `~`".into()
    }

    fn pattern() -> String {
        "^[A-Za-z0-9_.~-]+$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        // None of these is ever written otherwise in a query (RFC 3986 §2.3).
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~".contains(&b);
        let fits = !text.is_empty() && text.bytes().all(plain);
        if fits { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum KeysAt {
    /// A file.
    File(FilePath),
    /// A server.
    Url(KeysUrl),
}

/// A URL of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeysUrl {
    /// Whether it is `https`.
    pub tls: bool,
    /// A name, or an address without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub target: Target,
    /// As it is shown, which is without what its query says.
    pub text: String,
}

/// Path and query of a URL. Some servers take a key there, so no log, state or error shows the query.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Target(pub Arc<str>);

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_query(&self.0))
    }
}

/// A URL or its target, with `…` in the place of what its query says.
fn without_query(text: &str) -> Cow<'_, str> {
    match text.split_once('?') {
        Some((before, _)) => format!("{before}?…").into(),
        None => text.into(),
    }
}

/// A URL without its secrets: `…` stands for its query and for a user, who may have a password.
fn without_secrets(url: &str) -> Cow<'_, str> {
    let url = without_query(url);
    let Some((scheme, rest)) = url.split_once("://") else { return url };
    let authority = rest.split('/').next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://…{}", rest.get(at..).unwrap_or_default()).into(),
        None => url,
    }
}

impl Scalar for KeysAt {
    const NAME: &'static str = "jwks";

    fn expected() -> String {
        "the path of a file, or a URL that begins with `https://`".into()
    }

    fn pattern() -> String {
        "^.+$".into()
    }

    fn shown(text: &str) -> Cow<'_, str> {
        if text.contains("://") { without_secrets(text) } else { text.into() }
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        if !text.contains("://") {
            return FilePath::parse(text).map(Self::File);
        }
        let uri: http::Uri = text.parse().map_err(|_| Wrong::because("it is not a URL"))?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(Wrong::because("it is not a URL"));
        };
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let ip = host.parse::<std::net::IpAddr>().ok();
        let local = ip.is_some_and(|ip| ip.is_loopback()) || host.eq_ignore_ascii_case("localhost");
        let tls = match scheme {
            "https" => true,
            "http" if local => false,
            "http" => {
                let hint = without_query(text).replacen("http", "https", 1);
                return Err(Wrong { why: Some("keys that come in plaintext prove nothing".into()), hint: Some(hint) });
            }
            _ => return Err(Wrong::because("the scheme is https")),
        };
        if authority.as_str().contains('@') {
            return Err(Wrong::because("a user in a URL would stand in logs"));
        }
        if ip.is_none() && !is_host(host) {
            return Err(Wrong::because("its host is no name"));
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let target = Target(uri.path_and_query().map_or("/", |target| target.as_str()).into());
        let text = without_query(text).into_owned();
        Ok(Self::Url(KeysUrl { tls, host: host.to_ascii_lowercase(), port, target, text }))
    }

    fn write(&self) -> String {
        match self {
            Self::File(path) => path.write(),
            Self::Url(url) => url.text.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_a_file_or_by_https() {
        let host = |text: &str| match KeysAt::parse(text) {
            Ok(KeysAt::Url(url)) => Ok(format!("{} {} {} {}", url.tls, url.host, url.port, url.target.0)),
            Ok(KeysAt::File(path)) => Ok(path.write()),
            Err(wrong) => Err(wrong.why.unwrap_or_default()),
        };
        assert_eq!(host("keys.json"), Ok("keys.json".into()));
        assert_eq!(host("https://Login.shop/k?a=b"), Ok("true login.shop 443 /k?a=b".into()));
        assert_eq!(host("https://[::1]:8443"), Ok("true ::1 8443 /".into()));
        assert_eq!(host("http://127.0.0.1:1/k"), Ok("false 127.0.0.1 1 /k".into()));
        for (text, why) in [
            ("http://login.shop/k", "keys that come in plaintext prove nothing"),
            ("ftp://login.shop/k", "the scheme is https"),
            ("https://u:p@login.shop/k", "a user in a URL would stand in logs"),
            ("https://log in/k", "it is not a URL"),
        ] {
            assert_eq!(host(text), Err(why.into()), "{text}");
        }
        assert_eq!(KeysAt::parse("http://a.b/k").unwrap_err().hint.as_deref(), Some("https://a.b/k"));
    }

    #[test]
    fn what_a_url_of_keys_asks_by_its_query_is_shown_nowhere() {
        let at = KeysAt::parse("https://login.shop/k?api_key=hunter2").unwrap();
        let KeysAt::Url(url) = &at else { panic!("{at:?}") };
        assert_eq!(&*url.target.0, "/k?api_key=hunter2");
        assert_eq!((url.text.as_str(), at.write().as_str()), ("https://login.shop/k?…", "https://login.shop/k?…"));
        assert!(!format!("{at:?}").contains("hunter2"), "{at:?}");
        let wrong = KeysAt::parse("http://login.shop/k?api_key=hunter2").unwrap_err();
        assert_eq!(wrong.hint.as_deref(), Some("https://login.shop/k?…"));
        assert_eq!(KeysAt::shown("http://login.shop/k?api_key=hunter2"), "http://login.shop/k?…");
        assert_eq!(KeysAt::shown("keys?.json"), "keys?.json");
        assert_eq!(KeysAt::shown("https://user:hunter2@login.shop/k@1?x"), "https://…@login.shop/k@1?…");
        assert_eq!(KeysAt::shown("https://login.shop/k@1"), "https://login.shop/k@1");
    }
}
