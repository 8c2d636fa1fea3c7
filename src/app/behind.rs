//! How the app comes behind the rules: by which of the means that the file allows and this machine has.

use std::io;
use std::path::Path;

use rustix::process::geteuid;
use tracing::{info, warn};

use super::data::Data;
use crate::control::child::Behind;
use crate::control::inside::group::Group;
use crate::control::inside::{self, Holder};
use crate::ids::Door;
use crate::plan::Plan;
use crate::plan::door::Leads;
use crate::plan::redirect::{By, Capture, Mode, Pick};
use crate::redirect::build;
use crate::redirect::force::{self, Held};
use crate::redirect::rules::Match;

/// What is made for the app before the doors are opened.
pub(super) enum Means {
    /// Nothing.
    None,
    /// Rules for its sockets alone, by its user or its control group.
    Rules(Held, Who),
    /// A network of its own.
    Network(Holder),
    /// Variables that tell it of the outbound door.
    Proxy(String),
}

/// By what the rules know the app.
pub(super) enum Who {
    /// The user and group that it runs as.
    User(u32, u32),
    /// A control group of its own.
    Group(Group),
}

/// What has to last as long as the app is served; the rules go before the group that they name.
pub(super) struct Lasting(#[expect(dead_code, reason = "dropping them ends them")] Option<(Held, Who)>);

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
        By::Rules => match rules(plan, capture) {
            Ok(Some(means)) => Ok(means),
            Ok(None) => Err(
                "redirect.app: `rules`: it needs CAP_NET_ADMIN in this network namespace: run it as root, or leave \
                 the key away to have a network namespace of the app's own"
                    .into(),
            ),
            Err(why) => Err(format!("redirect.app: `rules`: {why}")),
        },
        By::Auto => auto(plan, capture, exe),
    }
}

/// The first that works here; each that should have and did not is told.
fn auto(plan: &Plan, capture: &Capture, exe: &Path) -> Result<Means, String> {
    if capture.mode == Mode::Tproxy {
        info!(
            "with `redirect.mode: tproxy` nothing is done for the app alone: `outrigger redirect apply` sets the rules"
        );
        return Ok(Means::None);
    }
    match rules(plan, capture) {
        Ok(Some(means)) => return Ok(means),
        Ok(None) if capture.app.uid.is_none() => {}
        Ok(None) => {
            return Err(
                "redirect.app-uid: without CAP_NET_ADMIN the app cannot be captured by its user: leave the key away"
                    .into(),
            );
        }
        Err(why) => warn!("the app cannot be captured by rules for it alone: {why}"),
    }
    network(capture, exe).or_else(|why| {
        warn!(
            "the app cannot be captured in a network of its own: {why}; it is told of the outbound door by HTTP_PROXY \
             instead, which it must heed"
        );
        proxy(plan)
    })
}

/// Rules for the app alone; `None` where this process may not set any.
fn rules(plan: &Plan, capture: &Capture) -> Result<Option<Means>, String> {
    if !force::is_allowed()? {
        return Ok(None);
    }
    let own = geteuid().as_raw();
    let who = match (capture.app.uid, capture.app.gid) {
        (Some(uid), _) if uid == own => {
            return Err(format!(
                "`redirect.app-uid` is {uid}, the user of the sidecar itself: they cannot be told apart"
            ));
        }
        (Some(uid), gid) => Who::User(uid, gid.unwrap_or(uid)),
        (None, _) => Who::Group(Group::make()?),
    };
    let (app, words) = match &who {
        Who::User(uid, _) => (Match::User(*uid), format!("user {uid}")),
        Who::Group(group) => {
            let (level, id, path) = (group.level, group.id, group.path.clone());
            (Match::ControlGroup { level, id, path }, format!("control group {}", group.path))
        }
    };
    let capture = of_app(plan, capture, own);
    let table = format!("outrigger-run-{}", std::process::id());
    let Some(held) = force::hold(&build::ruleset_of(&capture, app, force::has_ipv6()), &table)? else {
        info!("the rules of `outrigger redirect apply` are in force here, so the app gets none of its own");
        return Ok(Some(Means::None));
    };
    info!("the app alone is captured, as {words}, by the rules in table inet {table}; they end with this process");
    Ok(Some(Means::Rules(held, who)))
}

/// What is captured of one app: the sidecar is who we are, and inbound are only the app's own ports.
fn of_app(plan: &Plan, capture: &Capture, own: u32) -> Capture {
    let mut capture = Capture { uid: own, gid: None, ..capture.clone() };
    let ports = plan.capture.iter().flat_map(|capture| capture.ports.keys());
    let mut ports: Vec<_> = ports.map(|port| *port..=*port).collect();
    ports.sort_unstable_by_key(|range| *range.start());
    match &mut capture.inbound {
        Some(way) if way.only.ports.is_empty() && !ports.is_empty() => way.only.ports = ports,
        Some(way) if way.only.ports.is_empty() => capture.inbound = None,
        _ => {}
    }
    capture
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
    pub(super) fn settle(self, exe: &Path, data: &Data) -> io::Result<(Behind, Lasting)> {
        let behind = match self {
            Self::None => Behind::default(),
            Self::Rules(held, who) => {
                let behind = match &who {
                    Who::User(uid, gid) => Behind { user: Some((*uid, *gid)), ..Behind::default() },
                    Who::Group(group) => {
                        Behind { launcher: inside::into_group(exe, &group.folder), ..Behind::default() }
                    }
                };
                return Ok((behind, Lasting(Some((held, who)))));
            }
            Self::Network(holder) => {
                let handle = data.handle();
                let _runtime = handle.enter();
                Behind { launcher: holder.enter(exe)?, ..Behind::default() }
            }
            Self::Proxy(url) => Behind { variables: variables(&url), ..Behind::default() },
        };
        Ok((behind, Lasting(None)))
    }
}

/// What programs heed to find a proxy; some know only the one spelling.
fn variables(url: &str) -> Vec<(&'static str, String)> {
    let proxy = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, url.to_owned()));
    let not = ["NO_PROXY", "no_proxy"].map(|name| (name, "localhost,127.0.0.1,::1".to_owned()));
    proxy.into_iter().chain(not).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::facts::Facts;
    use crate::config::problem::Problems;

    fn plan(more: &str) -> Plan {
        let mut problems = Problems::new("FILE");
        let text = format!("service: a\nredirect: {{}}\n{more}\n");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let built = crate::plan::build::build(&document.config, Path::new("/"), &mut problems);
        assert!(!problems.has_errors(), "{problems}");
        built.plan
    }

    #[test]
    fn inbound_only_the_apps_own_ports_are_captured() {
        let of = |more: &str| {
            let plan = plan(more);
            let capture = of_app(&plan, plan.redirect.as_deref().unwrap(), 5);
            assert_eq!((capture.uid, capture.gid), (5, None));
            capture.inbound.map(|way| way.only.ports)
        };
        assert_eq!(of(""), None);
        assert_eq!(of("inbound: { app: '127.0.0.1:9000' }"), Some(vec![9000..=9000, 15006..=15006]));
        let more = "inbound: { app: '127.0.0.1:9000', ports: [{ listen: '[::]:81', app: '127.0.0.1:80' }] }";
        assert_eq!(of(more), Some(vec![80..=80, 81..=81, 9000..=9000, 15006..=15006]));
    }

    #[test]
    fn the_app_is_told_of_the_first_tcp_port_of_the_outbound_door() {
        let told = |more: &str| match proxy(&plan(more)) {
            Ok(Means::Proxy(url)) => url,
            Ok(_) => "nothing".into(),
            Err(why) => why,
        };
        assert_eq!(told(""), "http://127.0.0.1:15001");
        assert_eq!(told("outbound: { listen: ['unix:/x', '[::1]:7', '127.0.0.1:8'] }"), "http://[::1]:7");
        let names: Vec<&str> = variables("x").iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"]);
    }
}
