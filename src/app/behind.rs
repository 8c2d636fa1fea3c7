//! How the app comes behind the rules: by which of the means that the file allows and this machine has.

use std::io;
use std::path::Path;

use tracing::{info, warn};

use super::data::Data;
use crate::control::child::Behind;
use crate::control::inside::Holder;
use crate::ids::Door;
use crate::plan::Plan;
use crate::plan::door::Leads;
use crate::plan::redirect::{By, Capture, Pick};

/// What is made for the app before the doors are opened.
pub(super) enum Means {
    /// Nothing.
    None,
    /// A network of its own.
    Network(Holder),
    /// Variables that tell it of the outbound door.
    Proxy(String),
}

/// Makes what the app needs to be captured; nothing is left of what could not be made whole.
///
/// # Errors
/// A line that says why it cannot be as the file wants it.
pub(super) fn prepare(plan: &Plan, exe: &Path) -> Result<Means, String> {
    let Some(capture) = plan.redirect.as_deref() else { return Ok(Means::None) };
    match capture.app.by {
        By::Off => Ok(Means::None),
        By::Namespace => network(capture, exe).map_err(|why| format!("redirect.app: `namespace`: {why}")),
        By::Proxy => proxy(plan).map_err(|why| format!("redirect.app: `proxy`: {why}")),
        By::Rules | By::Auto => {
            network(capture, exe).or_else(|why| {
                warn!("the app cannot be captured: {why}; it is told of the outbound door by HTTP_PROXY instead, which it must heed");
                proxy(plan)
            })
        }
    }
}

fn network(capture: &Capture, exe: &Path) -> Result<Means, String> {
    let way = capture.outbound.as_ref().ok_or("`redirect.outbound` is off")?;
    let holder = Holder::start(exe, way.door)?;
    info!(
        "the app gets a network of its own: TCP goes to the outbound door, questions to name servers to the DNS door, other \
         UDP is refused; its loopback is its own"
    );
    if way.only != Pick::default() || way.except != Pick::default() {
        warn!(
            "`only` and `except` of redirect.outbound do not hold for an app with a network of its own: all it sends is captured"
        );
    }
    Ok(Means::Network(holder))
}

fn proxy(plan: &Plan) -> Result<Means, String> {
    let shared = plan.doors.iter().filter(|door| door.side == Door::Outbound && door.leads == Leads::ByAuthority);
    let addr = shared.filter_map(|door| door.listen.tcp()).find(|addr| addr.port() != 0);
    let addr = addr.ok_or("the outbound door has no TCP port")?;
    Ok(Means::Proxy(format!("http://{addr}")))
}

impl Means {
    /// What is done to the app at its start, with the doors not yet open.
    ///
    /// # Errors
    /// What the runtime says.
    pub(super) fn settle(self, exe: &Path, data: &Data) -> io::Result<Behind> {
        match self {
            Self::None => Ok(Behind::default()),
            Self::Network(holder) => {
                let handle = data.handle();
                let _runtime = handle.enter();
                Ok(Behind { launcher: holder.enter(exe)?, ..Behind::default() })
            }
            Self::Proxy(url) => Ok(Behind { variables: variables(&url), ..Behind::default() }),
        }
    }
}

/// What programs heed to find a proxy; some know only the one spelling.
fn variables(url: &str) -> Vec<(&'static str, String)> {
    let proxy = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, url.to_owned()));
    let not = ["NO_PROXY", "no_proxy"].map(|name| (name, "localhost,127.0.0.1,::1".to_owned()));
    proxy.into_iter().chain(not).collect()
}
