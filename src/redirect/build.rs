//! From what is to be captured to rules. What goes where:
//!
//! - The app calls out: to the outbound door. It calls a loopback address: untouched.
//! - The sidecar calls out, or a loopback address: untouched.
//! - Somebody calls the app: to the inbound door. Traffic that only passes through this machine: untouched.
//! - The app calls its own address, directly or by way of its service's: the first rule takes it to the outbound door;
//!   what that door then sends to this machine's own address goes to the inbound door, as from any other caller, so that
//!   both ends speak mutual TLS and the same rules judge it. The inbound door's call to the app has the same user and
//!   the same addresses; it is told apart by its differentiated services field ([`TO_APP`]), which needs no privilege,
//!   never leaves the machine, and lets the app see no loopback address where a remote caller stands behind it.

//!
//! Only a connection's first packet is asked where it goes, and whoever calls can send another one first, which is let go, or
//! somebody's rule can keep the connection out of the kernel's list. So what opens a connection that was to go to a door and
//! was not sent there goes nowhere: two chains look once more when all addresses are translated (the guards).

use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::rules::{Action, Base, Chain, Family, Hook, Kind, Match, Routing, Rule, Ruleset};
use crate::plan::capture::TO_APP;
use crate::plan::redirect::{AppCapture, Capture, DNS_PORT, DoorPorts, Mode, Pick, Way};

/// What the names of all our chains begin with; a table with any other chain is not ours.
pub const PREFIX: &str = "outrigger-";

/// Why addresses of one link are left alone.
pub(super) const LINK_LOCAL: &str = "link-local";

// iptables takes 28 bytes of a name, and `-interfaces` may follow.
const OUTBOUND: &str = "outrigger-outbound";
const OUT: &str = "outrigger-out";
const INBOUND: &str = "outrigger-inbound";
const IN: &str = "outrigger-in";
const OWN: &str = "outrigger-own";
const SELF: &str = "outrigger-self";
const BACK: &str = "outrigger-back";
/// What was to go to a door and did not.
const GUARD_OUT: &str = "outrigger-guard-out";
const GUARD_IN: &str = "outrigger-guard-in";
const GUARD_APP: &str = "outrigger-guard-app";
const NOT_OUT: &str = "outrigger-not-out";
const NOT_IN: &str = "outrigger-not-in";
const APP: &str = "outrigger-app";

/// Nobody sits there in a network of an app's own: `discard`, of a service that was hardly ever run (RFC 863).
const NOBODYS_PORT: u16 = 9;

/// Before `dstnat` (-100): what the app dialled is seen before a container engine or kube-proxy changes it.
const BEFORE_DSTNAT: i32 = -101;
const MANGLE: i32 = -150;
/// After all that changes where a packet of this machine goes.
const AFTER_DSTNAT: i32 = 0;

/// What is captured, and in which families.
struct Builder<'c> {
    capture: &'c Capture,
    v6: bool,
}

/// All rules for what is to be captured; without IPv6 those of IPv4 alone.
pub fn ruleset(capture: &Capture, v6: bool) -> Ruleset {
    let builder = Builder { capture, v6 };
    builder.all(vec![builder.outbound()], None)
}

/// The rules for one app: as [`ruleset`], but of what is sent on this machine only what the app sends is captured.
pub fn ruleset_of(capture: &Capture, app: Match, v6: bool) -> Ruleset {
    let builder = Builder { capture, v6 };
    builder.all(builder.outbound_of(app.clone()), Some(app))
}

/// Whether a chain only says again what another says.
pub fn repeats(chain: &Chain) -> bool {
    [SELF, GUARD_OUT, GUARD_APP, NOT_OUT, NOT_IN].iter().any(|name| {
        let rest = chain.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

/// By what these rules take what a user of a group sends for the sidecar's, in words; `None` where they do not.
pub fn exempt(chains: &[Chain], uid: u32, gid: u32) -> Option<String> {
    let output = chains.iter().filter(|chain| chain.base.is_some_and(|base| base.hook == Hook::Output));
    output.flat_map(|chain| &chain.rules).find_map(|rule| match rule.matches.as_slice() {
        [Match::User(found)] if *found == uid => Some(format!("user {uid}")),
        [Match::Group(found)] if *found == gid => Some(format!("group {gid}")),
        _ => None,
    })
}

/// The rules of a network of the app's own: all that it sends to others goes to these ports. What the inbound door sends to
/// the app comes from there too. Every address is its own there, so UDP to others would come back to it: it goes to where
/// nobody listens, which says so. `own` are the addresses by which the app knows itself.
pub fn inside(door: DoorPorts, v6: bool, own: &[IpNet]) -> Ruleset {
    let capture = Capture {
        mode: Mode::Redirect,
        uid: 0,
        gid: None,
        outbound: None,
        inbound: None,
        own: Vec::new(),
        dns: Some(Vec::new()),
        mark: 0,
        app: AppCapture::default(),
    };
    let builder = Builder { capture: &capture, v6 };
    let to_app = |family| Rule::new([Match::Dscp(family, TO_APP)], Action::Return, "the inbound door calls the app");
    let mut rules: Vec<Rule> = builder.families().map(to_app).collect();
    rules.extend(builder.dns());
    rules.extend(builder.loopback());
    rules.push(Rule::new([Match::Tcp, Match::Opening], Action::Goto(OUT.into()), "new connections"));
    let itself = |net: &IpNet| Rule::new([Match::Udp, Match::Destination(*net)], Action::Return, "itself");
    rules.extend(own.iter().map(itself));
    rules.push(Rule::new([Match::Udp], Action::Redirect(NOBODYS_PORT), "to others: refused"));
    let out = chain(OUT, builder.redirect(door));
    Ruleset { chains: vec![base(OUTBOUND, Kind::Nat, Hook::Output, BEFORE_DSTNAT, rules), out], routing: None }
}

/// Which connections a [`Pick`] is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Those that leave.
    Out,
    /// Those that come in through an interface.
    In,
    /// Those from the sidecar to its own machine, which come through no interface.
    Here,
}

impl Builder<'_> {
    /// What all rules have besides the first chains; with `app`, those for one app.
    fn all(&self, mut chains: Vec<Chain>, app: Option<Match>) -> Ruleset {
        let capture = self.capture;
        if let Some(outbound) = &capture.outbound {
            chains.extend(self.picked(OUT, outbound, Side::Out, &self.redirect(outbound.door)));
            chains.extend(self.guard_out(app));
            chains.extend(self.picked(NOT_OUT, outbound, Side::Out, &[self.drop("was to go to the outbound door")]));
        }
        let mut routing = None;
        if let Some(inbound) = &capture.inbound {
            chains.push(self.own());
            chains.extend(self.picked(SELF, inbound, Side::Here, &self.redirect(inbound.door)));
            match capture.mode {
                Mode::Redirect => {
                    chains.push(self.arrivals());
                    chains.extend(self.picked(IN, inbound, Side::In, &self.redirect(inbound.door)));
                    chains.push(self.guard_in());
                    let last = self.drop("was to go to the inbound door");
                    chains.extend(self.picked(NOT_IN, inbound, Side::In, &[last]));
                }
                Mode::Tproxy => {
                    chains.push(self.intercept());
                    chains.extend(self.picked(IN, inbound, Side::In, &self.tproxy(inbound.door)));
                    chains.push(self.back());
                    routing = Some(Routing { mark: capture.mark, v6: self.v6 });
                }
            }
        }
        Ruleset { chains, routing }
    }

    /// What was sent on this machine, where only one app is captured. The app comes first: it may be of the sidecar's user.
    fn outbound_of(&self, app: Match) -> Vec<Chain> {
        let mut rules = vec![Rule::new([app], Action::Goto(APP.into()), "what the app sends")];
        if self.capture.inbound.is_some() {
            let sends = |who| Rule::new([who], Action::Goto(OWN.into()), "what the sidecar sends");
            rules.extend(self.sidecar().into_iter().map(sends));
        }
        vec![base(OUTBOUND, Kind::Nat, Hook::Output, BEFORE_DSTNAT, rules), chain(APP, self.sent())]
    }

    /// What the service sends.
    fn sent(&self) -> Vec<Rule> {
        let mut rules = self.exempt();
        rules.extend(self.link_local());
        rules.extend(self.dns());
        if self.capture.outbound.is_some() {
            rules.extend(self.loopback());
            let matches = [Match::Tcp, Match::Opening];
            rules.push(Rule::new(matches, Action::Goto(OUT.into()), "new connections"));
        }
        rules
    }

    /// Users that are left alone.
    fn exempt(&self) -> Vec<Rule> {
        let exempt = self.capture.outbound.iter().flat_map(|way| &way.except.uids);
        exempt.map(|uid| Rule::new([Match::User(*uid)], Action::Return, "outbound.except.uids")).collect()
    }

    /// What was sent on this machine: the first packet of each connection.
    fn outbound(&self) -> Chain {
        let mut rules = Vec::new();
        let own = if self.capture.inbound.is_some() { Action::Goto(OWN.into()) } else { Action::Return };
        let sends = |who| Rule::new([who], own.clone(), "what the sidecar sends");
        rules.extend(self.sidecar().into_iter().map(sends));
        rules.extend(self.sent());
        base(OUTBOUND, Kind::Nat, Hook::Output, BEFORE_DSTNAT, rules)
    }

    /// By what the sidecar is known.
    fn sidecar(&self) -> Vec<Match> {
        let group = self.capture.gid.map(Match::Group);
        std::iter::once(Match::User(self.capture.uid)).chain(group).collect()
    }

    /// What the sidecar sent.
    fn own(&self) -> Chain {
        let mut rules = self.loopback();
        let to_app =
            |family| Rule::new([Match::Dscp(family, TO_APP)], Action::Return, "the inbound door calls the app");
        rules.extend(self.families().map(to_app));
        let matches = [Match::Tcp, Match::Opening, Match::ToHere];
        rules.push(Rule::new(matches, Action::Goto(SELF.into()), "the service calls itself"));
        chain(OWN, rules)
    }

    /// What came in through an interface: the first packet of each connection.
    fn arrivals(&self) -> Chain {
        let matches = [Match::Tcp, Match::Opening, Match::ToHere];
        let rules = vec![
            Rule::new([Match::In("lo".into())], Action::Return, "loopback"),
            Rule::new(matches, Action::Goto(IN.into()), "new connections to this machine"),
        ];
        base(INBOUND, Kind::Nat, Hook::Prerouting, BEFORE_DSTNAT, rules)
    }

    /// What came in and was not sent to the door. It is asked what was, because what the kernel knows no connection of has no
    /// state at all.
    fn guard_in(&self) -> Chain {
        let mut rules = guarded();
        rules.insert(1, Rule::new([Match::In("lo".into())], Action::Return, "loopback"));
        rules.push(Rule::new([Match::Tcp, Match::ToHere], Action::Goto(NOT_IN.into()), "not sent to the door"));
        base(GUARD_IN, Kind::Filter, Hook::Input, MANGLE, rules)
    }

    /// The same for what the service sends.
    fn guard_out(&self, app: Option<Match>) -> Vec<Chain> {
        let mut rest = self.exempt();
        rest.extend(self.link_local());
        rest.extend(self.loopback());
        rest.push(Rule::new([Match::Tcp], Action::Goto(NOT_OUT.into()), "not sent to the door"));
        let mut rules = guarded();
        let mut more = Vec::new();
        if let Some(app) = app {
            rules.push(Rule::new([app], Action::Goto(GUARD_APP.into()), "what the app sends"));
            more.push(chain(GUARD_APP, rest));
        } else {
            let sends = |who| Rule::new([who], Action::Return, "what the sidecar sends");
            rules.extend(self.sidecar().into_iter().map(sends));
            rules.extend(rest);
        }
        let guard = base(GUARD_OUT, Kind::Filter, Hook::Output, AFTER_DSTNAT, rules);
        std::iter::once(guard).chain(more).collect()
    }

    /// The same where connections keep their addresses: each packet.
    fn intercept(&self) -> Chain {
        // A packet that opens a connection must not be taken for one of an old connection with the same ports.
        let matches = vec![Match::Tcp, Match::Opened, Match::Transparent];
        let actions = vec![Action::Mark(self.capture.mark), Action::Return];
        // What opens a connection goes there whatever the kernel takes it for, or where it keeps no list of it.
        let opens = [Match::Tcp, Match::Opening, Match::ToHere];
        // Answers to what was sent from here may still carry addresses that are to be translated back.
        let others = [Match::Tcp, Match::Original, Match::ToHere];
        let rules = vec![
            Rule::new([Match::In("lo".into())], Action::Return, "loopback"),
            Rule { matches, actions, why: "connections that the sidecar has".into() },
            Rule::new(opens, Action::Goto(IN.into()), "new connections to this machine"),
            Rule::new(others, Action::Goto(IN.into()), "connections to this machine"),
        ];
        base(INBOUND, Kind::Filter, Hook::Prerouting, MANGLE, rules)
    }

    /// The app's answers to callers whose address the inbound door showed it: back to that door instead of the network.
    fn back(&self) -> Chain {
        let mark = self.capture.mark;
        let called = |who: Match| {
            self.families().map(move |family| {
                let matches = [who.clone(), Match::Tcp, Match::Dscp(family, TO_APP)];
                Rule::new(matches, Action::MarkConnection(mark), "the inbound door calls the app")
            })
        };
        let mut rules: Vec<Rule> = self.sidecar().into_iter().flat_map(called).collect();
        let matches = [Match::Reply, Match::ConnectionMark(mark)];
        rules.push(Rule::new(matches, Action::Mark(mark), "the app answers"));
        base(BACK, Kind::Route, Hook::Output, MANGLE, rules)
    }

    /// Chains that leave alone what is not to be captured, and end in `last`; the first of them has this name.
    fn picked(&self, name: &str, way: &Way, side: Side, last: &[Rule]) -> Vec<Chain> {
        let mut rules = Vec::new();
        if side != Side::Out {
            rules.extend(self.capture.own.iter().map(|port| {
                Rule::new([Match::Tcp, Match::Port(*port..=*port)], Action::Return, "a port of the sidecar")
            }));
        }
        let place = if side == Side::Out { "outbound" } else { "inbound" };
        // Exempt users were let go before anything else was looked at.
        for (key, kind) in self.kinds(&way.except, side).into_iter().filter(|(key, _)| *key != "uids") {
            let why = format!("{place}.except.{key}");
            rules.extend(kind.into_iter().flatten().map(|found| Rule::new(found, Action::Return, why.clone())));
        }
        // Each kind of `only` ends a chain that only a match leads out of.
        let (mut chains, mut own) = (Vec::new(), name.to_owned());
        for (key, kind) in self.kinds(&way.only, side) {
            let Some(kind) = kind else { continue };
            let (next, why) = (format!("{name}-{key}"), format!("{place}.only.{key}"));
            rules.extend(kind.into_iter().map(|found| Rule::new(found, Action::Goto(next.clone()), why.clone())));
            chains.push(chain(&own, std::mem::take(&mut rules)));
            own = next;
        }
        rules.extend_from_slice(last);
        chains.push(chain(&own, rules));
        chains
    }

    /// What a pick looks at, kind by kind: `None` if it says nothing, else what must hold for each entry. Networks of a
    /// family that is off are left out.
    fn kinds(&self, pick: &Pick, side: Side) -> [(&'static str, Option<Vec<Vec<Match>>>); 4] {
        let port = |range: &RangeInclusive<u16>| vec![Match::Tcp, Match::Port(range.clone())];
        let network = |net: &IpNet| match net.prefix_len() {
            0 => vec![Match::Family(Family::of(net))],
            _ if side == Side::Out => vec![Match::Destination(*net)],
            _ => vec![Match::Source(*net)],
        };
        let interface =
            |name: &String| vec![if side == Side::Out { Match::Out(name.clone()) } else { Match::In(name.clone()) }];
        let interfaces: &[String] = if side == Side::Here { &[] } else { &pick.interfaces };
        let networks = pick.networks.iter().filter(|net| self.v6 || Family::of(net) == Family::V4);
        let said = |empty: bool, kind| (!empty).then_some(kind);
        [
            ("interfaces", said(interfaces.is_empty(), interfaces.iter().map(interface).collect())),
            ("uids", said(pick.uids.is_empty(), pick.uids.iter().map(|uid| vec![Match::User(*uid)]).collect())),
            ("ports", said(pick.ports.is_empty(), pick.ports.iter().map(port).collect())),
            ("networks", said(pick.networks.is_empty(), networks.map(network).collect())),
        ]
    }

    /// Questions to name servers.
    fn dns(&self) -> Vec<Rule> {
        let Some(servers) = &self.capture.dns else { return Vec::new() };
        let targets: Vec<Vec<Match>> = match servers.as_slice() {
            [] if self.v6 => vec![Vec::new()],
            [] => vec![vec![Match::Family(Family::V4)]],
            listed => {
                let there = listed.iter().filter(|net| self.v6 || Family::of(net) == Family::V4);
                let server = |net: &IpNet| match net.prefix_len() {
                    0 => vec![Match::Family(Family::of(net))],
                    _ => vec![Match::Destination(*net)],
                };
                there.map(server).collect()
            }
        };
        let rule = |target: &Vec<Match>, protocol: &[Match]| {
            let matches: Vec<Match> = target.iter().chain(protocol).cloned().chain([Match::Port(53..=53)]).collect();
            Rule::new(matches, Action::Redirect(DNS_PORT), "dns")
        };
        let both = |target| [rule(target, &[Match::Udp]), rule(target, &[Match::Tcp, Match::Opening])];
        targets.iter().flat_map(both).collect()
    }

    fn loopback(&self) -> Vec<Rule> {
        let own = |net| Rule::new([Match::Destination(net)], Action::Return, "loopback");
        self.families().map(|family| own(loopback(family))).collect()
    }

    /// A socket that calls a link-local address, be it a name server's, is bound to an interface, and so has no way to a door
    /// on loopback.
    fn link_local(&self) -> Option<Rule> {
        let net = Ipv6Net::new_assert([0xfe80, 0, 0, 0, 0, 0, 0, 0].into(), 10);
        self.v6.then(|| Rule::new([Match::Destination(net.into())], Action::Return, LINK_LOCAL))
    }

    fn redirect(&self, door: DoorPorts) -> Vec<Rule> {
        self.to_door(door, |port| vec![Action::Redirect(port)])
    }

    fn tproxy(&self, door: DoorPorts) -> Vec<Rule> {
        let mark = self.capture.mark;
        let mut rules = self.to_door(door, |port| vec![Action::Tproxy(port), Action::Mark(mark), Action::Accept]);
        // Where nobody listens at the door the rule ends there, and the next would be the app; connections from before go on.
        let mut nobody = self.drop("nobody at the door");
        nobody.matches.push(Match::Opening);
        rules.push(nobody);
        rules
    }

    /// The last rules, of both families at once where that is the same.
    fn to_door(&self, door: DoorPorts, actions: impl Fn(u16) -> Vec<Action>) -> Vec<Rule> {
        let rule = |family: Option<Family>, port| Rule {
            matches: family.map(Match::Family).into_iter().chain([Match::Tcp]).collect(),
            actions: actions(port),
            why: "to the door".into(),
        };
        match (self.v6, door.v4 == door.v6) {
            (true, true) => vec![rule(None, door.v4)],
            (true, false) => vec![rule(Some(Family::V4), door.v4), rule(Some(Family::V6), door.v6)],
            (false, _) => vec![rule(Some(Family::V4), door.v4)],
        }
    }

    /// What ends a chain for what was to go to a door.
    fn drop(&self, why: &str) -> Rule {
        let family = (!self.v6).then_some(Match::Family(Family::V4));
        Rule::new(family.into_iter().chain([Match::Tcp]).collect::<Vec<_>>(), Action::Drop, why)
    }

    fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let v6 = self.v6.then_some(Family::V6);
        std::iter::once(Family::V4).chain(v6)
    }
}

/// What every guard lets pass first. That the kernel has seen both ends speak (`assured`) is no sign of a connection from
/// before the rules: a neighbour on the link can send both ends' packets.
fn guarded() -> Vec<Rule> {
    vec![
        Rule::new([Match::Tcp, Match::Opened], Action::Return, "connections that are there"),
        Rule::new([Match::Translated], Action::Return, "sent to the door"),
    ]
}

/// The addresses that never leave the machine.
fn loopback(family: Family) -> IpNet {
    match family {
        Family::V4 => Ipv4Net::new_assert([127, 0, 0, 0].into(), 8).into(),
        Family::V6 => Ipv6Net::from(std::net::Ipv6Addr::LOCALHOST).into(),
    }
}

fn chain(name: &str, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: None, rules }
}

fn base(name: &str, kind: Kind, hook: Hook, priority: i32, rules: Vec<Rule>) -> Chain {
    Chain { name: name.to_owned(), base: Some(Base { kind, hook, priority }), rules }
}
