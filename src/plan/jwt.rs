//! Whose JSON Web Tokens are believed, where requests carry them, and where the keys come from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use super::peer::Roots;
use crate::config::jwt::Target;

/// The issuers of the service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JwtPlan {
    /// Each with what its tokens must say.
    pub issuers: Vec<IssuerPlan>,
}

/// One issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IssuerPlan {
    /// What `iss` must be.
    pub issuer: Arc<str>,
    /// What `aud` must name one of; `None` where it may be anything.
    pub audiences: Option<Vec<String>>,
    /// Where its keys come from.
    pub keys: KeysPlan,
    /// Where its tokens stand.
    pub place: Place,
    /// How far its clock may differ.
    pub leeway: Duration,
    /// Whether the service does not get the token.
    pub strip: bool,
}

/// Where an issuer's keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysPlan {
    /// A file, which is watched.
    File(PathBuf),
    /// A server, which is asked again and again.
    Url {
        /// As the file writes it, but for what its query says.
        text: Arc<str>,
        /// A name, or an address without brackets.
        host: Arc<str>,
        /// The port.
        port: u16,
        /// Path and query.
        target: Target,
        /// Whom to trust; `None` is plain HTTP on this machine.
        roots: Option<Roots>,
    },
}

/// Where a token stands in a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a field.
    Header(HeaderName),
    /// In a cookie.
    Cookie(Arc<str>),
    /// In a parameter of the query.
    Query(Arc<str>),
}
