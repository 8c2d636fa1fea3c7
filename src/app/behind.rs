//! How the app comes behind the rules: by which of the means that the file allows and this machine has.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rustix::process::{getegid, geteuid};
use rustix::thread::{CapabilitySet, capabilities};
use tracing::{info, warn};

use super::data::Data;
use crate::cli::Environment;
use crate::control::child::Behind;
use crate::control::inside::group::Group;
use crate::control::inside::{Holder, Watched, into_group};
use crate::control::reload::Captured;
use crate::ids::Door;
use crate::net::inside::inside;
use crate::plan::Plan;
use crate::plan::door::Leads;
use crate::plan::egress::is_own;
use crate::plan::peer::{Addresses, PeerKind};
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
    /// The user that it runs as.
    User(u32),
    /// A control group of its own.
    Group(Group),
}

/// What is done for the app.
pub(super) struct Settled {
    /// At its start.
    pub(super) behind: Behind,
    /// How it is captured then.
    pub(super) captured: Captured,
    #[expect(dead_code, reason = "dropping it ends it")]
    lasting: Lasting,
}

/// What has to last as long as the app is served.
enum Lasting {
    /// Nothing.
    None,
    /// The rules go before the group that they name.
    Rules(#[expect(dead_code, reason = "dropping them ends them")] Held, #[expect(dead_code, reason = "as above")] Who),
    /// The process that holds its network.
    Network(#[expect(dead_code, reason = "as above")] Watched),
}

impl Settled {
    /// The end of what lasts, should it come before ours.
    pub(super) async fn lost(&self) {
        match inside() {
            Some(inside) => inside.lost().await,
            None => std::future::pending().await,
        }
    }
}

/// Makes what the app needs to be captured; nothing is left of what could not be made whole.
///
/// # Errors
/// A line that says why it cannot be as the file wants it.
pub(super) fn prepare(plan: &Plan, exe: &Path) -> Result<Means, String> {
    let Some(capture) = plan.redirect.as_deref() else { return Ok(Means::None) };
    if let Some(uid) = capture.app.uid {
        may_be(uid, capture.app.gid.unwrap_or(uid)).map_err(|why| format!("redirect.app-uid: {why}"))?;
    }
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

/// Refuses to go without an app where only a network of the app's own tells it from this sidecar.
///
/// # Errors
/// A line that says so.
pub(super) fn without(plan: &Plan) -> Result<(), String> {
    let within = plan.redirect.as_deref().is_some_and(|capture| capture.app.by == By::Namespace);
    let apps = plan.peers.iter().filter(|peer| within && peer.kind == PeerKind::App);
    let mut addresses = apps.flat_map(|peer| match &peer.source.addresses {
        Addresses::Static(specs) => specs.as_slice(),
        _ => &[],
    });
    match addresses.find(|spec| is_own(&spec.addr, &plan.egress)) {
        None => Ok(()),
        Some(spec) => Err(format!(
            "inbound: `{}` is this sidecar itself, unless it starts the app in a network of its own: \
             `outrigger run -c FILE -- COMMAND`",
            spec.addr
        )),
    }
}

/// Whether the app can be started as this user and group, and told apart from the sidecar by the user.
fn may_be(uid: u32, gid: u32) -> Result<(), String> {
    let (own, group) = (geteuid().as_raw(), getegid().as_raw());
    if uid == own {
        return Err(format!("{uid} is the user of the sidecar itself: they cannot be told apart"));
    }
    let held = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID;
    if held.contains(needed) {
        return Ok(());
    }
    Err(format!(
        "to start the app as user {uid} and group {gid} the sidecar, user {own} and group {group}, needs CAP_SETUID and \
         CAP_SETGID, besides CAP_NET_ADMIN: run it as root, or leave the key away"
    ))
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
        // In a network of its own there would be no such user, and without rules no capture.
        Err(why) if capture.app.uid.is_some() => {
            return Err(format!("redirect.app-uid: the app cannot be captured by its user: {why}"));
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
    let who = match capture.app.uid {
        Some(uid) => Who::User(uid),
        None => Who::Group(Group::make()?),
    };
    let (app, words) = match &who {
        Who::User(uid) => (Match::User(*uid), format!("user {uid}")),
        Who::Group(group) => {
            let (level, id, path) = (group.level, group.id, group.path.clone());
            (Match::ControlGroup { level, id, path }, format!("control group {}", group.path))
        }
    };
    let rules = build::ruleset_of(&of_app(plan, capture, own), app, force::has_ipv6());
    let table = format!("outrigger-run-{}", std::process::id());
    let Some(held) = force::hold(&rules, &table)? else {
        not_exempt(capture)?;
        info!("the rules of `outrigger redirect apply` are in force here, so the app gets none of its own");
        return Ok(Some(Means::None));
    };
    info!(
        "the app alone is captured, as {words}, by the rules in table inet {}; they end with this process",
        held.table
    );
    Ok(Some(Means::Rules(held, who)))
}

/// Whether the rules in force capture the app as whom it is started. Where nothing in the file says who that is to be, it
/// may be meant so, and is only told.
///
/// # Errors
/// A line that says why not, and what to do.
fn not_exempt(capture: &Capture) -> Result<(), String> {
    let (uid, gid) = match (capture.app.uid, capture.app.gid) {
        (Some(uid), gid) => (uid, gid.unwrap_or(uid)),
        (None, _) => (geteuid().as_raw(), getegid().as_raw()),
    };
    let chains = force::look()?.chains.unwrap_or_default();
    let Some(who) = build::exempt(&chains, uid, gid) else { return Ok(()) };
    let why =
        format!("the rules of `outrigger redirect apply` leave alone what {who} sends, and so all that the app sends");
    if capture.app.uid.is_some() {
        return Err(format!("{why}: give it another user, or apply the rules with another for the sidecar"));
    }
    warn!("{why}: give it another user by `redirect.app-uid`");
    Ok(())
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
    if !holder.has_ipv6() {
        info!("the app's network has no IPv6, because this machine has no address of it for others");
    }
    info!(
        "the app gets a network of its own: TCP goes to the outbound door, questions to name servers to the DNS door, other \
         UDP is refused; its loopback is its own"
    );
    if geteuid().is_root() {
        warn!(
            "in a network of its own the app is root of nothing else, and no other user exists for it: a program that gives \
             root up for another user fails (nginx, postgres): start it as that user, or capture it with `redirect.app: rules`"
        );
    }
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
    let mut addr = addr.ok_or("the outbound door has no TCP port")?;
    match addr.ip() {
        // A listener on all addresses is none to call.
        IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(Means::Proxy(format!("http://{addr}")))
}

impl Means {
    /// What is done to the app at its start, with the doors not yet open.
    ///
    /// # Errors
    /// What the runtime says.
    pub(super) fn settle(self, plan: &Plan, environment: &Environment, data: &Data) -> io::Result<Settled> {
        let exe = environment.exe();
        let app = plan.redirect.as_deref().map(|capture| capture.app);
        let user = app.and_then(|app| app.uid.map(|uid| (uid, app.gid.unwrap_or(uid))));
        // What a service manager gave the sidecar is not for an app that could take its rules away with it.
        let bare = app.is_some_and(|app| app.by != By::Off || app.uid.is_some());
        let (mut behind, mut lasting) = (Behind { user, bare, ..Behind::default() }, Lasting::None);
        let captured = match self {
            Self::None => Captured::Not,
            Self::Rules(held, who) => {
                if let Who::Group(group) = &who {
                    behind.launcher = into_group(exe, &group.folder);
                }
                lasting = Lasting::Rules(held, who);
                Captured::Rules
            }
            Self::Network(holder) => {
                let handle = data.handle();
                let _runtime = handle.enter();
                let (launcher, holder) = holder.enter(exe)?;
                (behind.launcher, lasting) = (launcher, Lasting::Network(holder));
                Captured::Network
            }
            Self::Proxy(url) => {
                behind.variables = variables(&url, |name| environment.variable(name));
                Captured::Proxy
            }
        };
        behind.bare &= behind.launcher.is_empty();
        Ok(Settled { behind, captured, lasting })
    }
}

/// What programs heed to find a proxy; some know only the one spelling. Who was not to be called by a proxy still is not.
fn variables(url: &str, said: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let proxy = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"].map(|name| (name, url.to_owned()));
    let own = "localhost,127.0.0.1,::1";
    let not = ["NO_PROXY", "no_proxy"].map(|name| match said(name).filter(|said| !said.is_empty()) {
        Some(said) => (name, format!("{said},{own}")),
        None => (name, own.to_owned()),
    });
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
        assert_eq!(told("outbound: { listen: ['0.0.0.0:8', '[::]:9'] }"), "http://127.0.0.1:8");
        let said = variables("x", |name| (name == "no_proxy").then(|| "db".to_owned()));
        assert_eq!(said[5], ("no_proxy", "db,localhost,127.0.0.1,::1".to_owned()));
        assert_eq!(said[4].1, "localhost,127.0.0.1,::1");
        let names: Vec<&str> = variables("x", |_| None).iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"]);
    }

    #[test]
    fn a_listener_with_the_apps_address_takes_an_app_elsewhere() {
        let inbound = "inbound: { listen: '[::]:9000', app: '127.0.0.1:9000' }";
        let mut problems = Problems::new("FILE");
        let text = format!("service: a\nredirect: {{ app: namespace }}\n{inbound}\n");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let mut plan = crate::plan::build::build(&document.config, Path::new("/"), &mut problems).plan;
        assert!(!problems.has_errors(), "{problems}");
        assert!(without(&plan).unwrap_err().contains("`127.0.0.1:9000` is this sidecar itself"));
        plan.redirect = None;
        assert_eq!(without(&plan), Ok(()));
    }
}
