//! Who may ask what of the admin server: a page in a browser nothing, a change only its owner.
//!
//! A web page can make a browser talk to loopback, under a name of its own choosing (DNS rebinding): hence Host and
//! Origin are judged before anything is told.

use std::hint::black_box;
use std::io::Read;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, StatusCode, Uri};

use crate::files;
use crate::ids::Addr;
use crate::plan::AdminPlan;

/// The longest token file that is read.
const TOKEN_LIMIT: u64 = 4096;
/// The shortest token that is taken: 128 bits in base64.
const TOKEN_SHORTEST: usize = 22;

/// Why a request is refused, in one line.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    /// 400, 401 or 403.
    pub status: StatusCode,
    /// What is wrong and what to do.
    pub why: String,
}

impl Refusal {
    fn forbidden(why: impl Into<String>) -> Self {
        Self { status: StatusCode::FORBIDDEN, why: why.into() }
    }
}

/// Where a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Over TCP.
    Tcp,
    /// Over the Unix socket, by a process of this user.
    Unix {
        /// The user, where the system told.
        uid: Option<u32>,
    },
}

/// Refuses what a browser sends on behalf of a page from elsewhere.
///
/// # Errors
/// 403 for such a request.
pub fn not_a_page(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::forbidden("requests with an Origin header are refused: pages have no business here"));
    }
    let elsewhere = |site: &http::HeaderValue| !matches!(site.as_bytes(), b"same-origin" | b"none");
    if headers.get_all("sec-fetch-site").iter().any(elsewhere) {
        return Err(Refusal::forbidden("requests from another site's page are refused"));
    }
    Ok(())
}

/// Refuses a Host that is not this machine's loopback or the address listened on; over a Unix socket any will do.
///
/// # Errors
/// 400 for no or several Hosts, 403 for a wrong one.
pub fn right_host(listen: &Addr, uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let Addr::Tcp(listen) = listen else { return Ok(()) };
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal { status: StatusCode::BAD_REQUEST, why: "exactly one Host header is needed".into() });
    };
    let named = |host: &str| is_ours(host, listen.ip());
    let in_target = uri.authority().is_none_or(|authority| named(authority.as_str()));
    if in_target && host.to_str().is_ok_and(named) {
        return Ok(());
    }
    Err(Refusal::forbidden(format!("Host is not this machine: ask for localhost, 127.0.0.1, [::1] or {listen}")))
}

fn is_ours(authority: &str, listen: IpAddr) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_end_matches('.');
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip == listen,
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether this caller may change things: the process's own user or root over the Unix socket, or whoever knows the
/// token.
///
/// # Errors
/// 401 for a missing or wrong token, 403 where no token could help; the line says what to configure.
pub fn may_change(plan: &AdminPlan, caller: Caller, headers: &HeaderMap) -> Result<(), Refusal> {
    let own = rustix::process::geteuid().as_raw();
    if let Caller::Unix { uid: Some(uid) } = caller
        && (uid == own || uid == 0)
    {
        return Ok(());
    }
    let Some(path) = &plan.token else {
        return Err(Refusal::forbidden(
            "changes need the Unix socket (admin: { listen: \"unix:/PATH\" }) and this process's user, or a token \
             (admin: { listen: …, token: FILE })",
        ));
    };
    let token = read_token(path).map_err(|why| Refusal::forbidden(format!("token file {}: {why}", path.display())))?;
    let given = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    if given.is_some_and(|given| equal(given, token.as_bytes())) {
        return Ok(());
    }
    let why = "changes need `Authorization: Bearer TOKEN` with the text of the token file".into();
    Err(Refusal { status: StatusCode::UNAUTHORIZED, why })
}

/// The token of `Bearer TOKEN` (RFC 6750); the scheme's case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Read at each use, so that a new token counts at once.
///
/// # Errors
/// Why the file holds no token that counts, without its path.
pub fn read_token(path: &Path) -> Result<String, String> {
    let (file, facts) = files::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mode = facts.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("mode is {mode:04o}, others can read it; make it 0600"));
    }
    let mut text = String::new();
    file.take(TOKEN_LIMIT).read_to_string(&mut text).map_err(|error| error.to_string())?;
    let text = text.trim();
    if text.len() < TOKEN_SHORTEST {
        return Err(format!(
            "a token needs at least {TOKEN_SHORTEST} characters (`openssl rand -base64 32` makes one)"
        ));
    }
    Ok(text.to_owned())
}

/// Compares in a time that tells only the length.
fn equal(a: &[u8], b: &[u8]) -> bool {
    let different = a.iter().zip(b).fold(0, |different, (a, b)| black_box(different | (a ^ b)));
    a.len() == b.len() && different == 0
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use http::HeaderValue;

    use super::super::testing::{Folder, folder};
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn pages_are_refused() {
        for (fields, refused) in [
            (vec![], false),
            (vec![("sec-fetch-site", "none")], false),
            (vec![("sec-fetch-site", "same-origin")], false),
            (vec![("sec-fetch-site", "same-site")], true),
            (vec![("sec-fetch-site", "cross-site")], true),
            (vec![("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")], true),
            (vec![("origin", "http://127.0.0.1:15000")], true),
            (vec![("origin", "null")], true),
        ] {
            assert_eq!(not_a_page(&headers(&fields)).is_err(), refused, "{fields:?}");
        }
    }

    #[test]
    fn only_loopback_names_are_hosts() {
        let listen: Addr = "127.0.0.2:15000".parse().unwrap();
        for (target, hosts, status) in [
            ("/", vec!["localhost"], 200),
            ("/", vec!["LocalHost.:9999"], 200),
            ("/", vec!["127.0.0.1:15000"], 200),
            ("/", vec!["127.0.0.2"], 200),
            ("/", vec!["[::1]:15000"], 200),
            ("/", vec!["[::ffff:127.0.0.1]"], 200),
            ("/", vec!["10.0.0.1"], 403),
            ("/", vec!["localhost.evil.example"], 403),
            ("/", vec!["127.0.0.1.evil.example"], 403),
            ("/", vec!["evil@localhost:1:2"], 403),
            ("/", vec![""], 403),
            ("/", vec![], 400),
            ("/", vec!["localhost", "localhost"], 400),
            ("http://evil.example/", vec!["localhost"], 403),
            ("http://localhost/", vec!["localhost"], 200),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            let judged = right_host(&listen, &target.parse().unwrap(), &headers(&fields));
            assert_eq!(judged.map_or_else(|refusal| refusal.status.as_u16(), |()| 200), status, "{target} {hosts:?}");
        }
        let unix: Addr = "unix:/run/o.sock".parse().unwrap();
        assert_eq!(right_host(&unix, &"/".parse().unwrap(), &headers(&[("host", "anything")])), Ok(()));
    }

    fn token_file(folder: &Folder, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn changes_need_the_owner_or_the_token() {
        const TOKEN: &str = "0123456789abcdef0123456789abcdef";
        let own = rustix::process::geteuid().as_raw();
        let folder = folder();
        let with = |token: Option<PathBuf>| AdminPlan { listen: "127.0.0.1:1".parse().unwrap(), token };
        let good = || Some(token_file(&folder, "good", &format!("{TOKEN}\n"), 0o600));
        let right = format!("bearer {TOKEN}");
        let near = format!("Bearer {}0", &TOKEN[..31]);
        for (token, caller, given, status) in [
            (None, Caller::Unix { uid: Some(own) }, None, 200),
            (None, Caller::Unix { uid: Some(own + 1) }, None, 403),
            (None, Caller::Unix { uid: None }, None, 403),
            (None, Caller::Tcp, Some(right.as_str()), 403),
            (good(), Caller::Tcp, Some(right.as_str()), 200),
            (good(), Caller::Unix { uid: Some(own + 1) }, Some(right.as_str()), 200),
            (good(), Caller::Tcp, Some(near.as_str()), 401),
            (good(), Caller::Tcp, Some("Bearer "), 401),
            (good(), Caller::Tcp, Some("Basic x"), 401),
            (good(), Caller::Tcp, None, 401),
            (Some(token_file(&folder, "wide", TOKEN, 0o640)), Caller::Tcp, Some(right.as_str()), 403),
            (Some(token_file(&folder, "short", "short", 0o600)), Caller::Tcp, Some("Bearer short"), 403),
            (Some(token_file(&folder, "empty", "", 0o600)), Caller::Tcp, Some("Bearer "), 403),
            (Some("/no/such/token".into()), Caller::Tcp, Some(right.as_str()), 403),
        ] {
            let fields: Vec<_> = given.iter().map(|value| ("authorization", *value)).collect();
            let judged = may_change(&with(token.clone()), caller, &headers(&fields));
            let found = judged.map_or_else(|refusal| refusal.status.as_u16(), |()| 200);
            assert_eq!(found, status, "{token:?} {caller:?} {given:?}");
        }
    }

    #[test]
    fn equality_is_of_all_bytes() {
        for (a, b, same) in
            [("", "", true), ("a", "a", true), ("a", "b", false), ("a", "ab", false), ("ab", "a", false)]
        {
            assert_eq!(equal(a.as_bytes(), b.as_bytes()), same);
        }
    }
}
