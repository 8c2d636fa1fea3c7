//! Whether the rules of `redirect apply` let this sidecar's own connections go, as far as the file tells.

use rustix::process::{getegid, geteuid};
use tracing::warn;

use crate::control::reload::Captured;
use crate::net::ours::{Watch, watch};
use crate::plan::redirect::{Capture, Pick};

/// Tells where they do not, and has the doors look out for what comes back. What is made for an app alone knows this
/// process by itself.
pub(super) fn look(capture: Option<&Capture>, captured: Captured) {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let taken = capture.filter(|_| captured == Captured::Not).and_then(|capture| taken(capture, uid, gid));
    watch(watched(capture, captured, taken));
    if let (Some(capture), Some(taken)) = (capture, taken) {
        warn!("{}", words(capture, taken, uid, gid));
    }
}

/// How the doors look out. Rules for the app's own network take nothing that is sent in this one, where no outbound door listens
/// to which others' could lead. With `HTTP_PROXY` alone there may still be rules here that this process has no right to see.
fn watched(capture: Option<&Capture>, captured: Captured, taken: Option<Taken>) -> Watch {
    match (capture.and_then(|capture| capture.outbound.as_ref()), captured, taken) {
        (None, ..) | (_, Captured::Network, _) => Watch::Off,
        (Some(_), _, Some(Taken::Connections)) => Watch::Captured,
        (Some(_), _, None | Some(Taken::Questions)) => Watch::Spared,
    }
}

/// What of a sidecar's own the rules take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Taken {
    /// Connections.
    Connections,
    /// Questions to name servers alone.
    Questions,
}

/// What the rules take of what this user and group send.
fn taken(capture: &Capture, uid: u32, gid: u32) -> Option<Taken> {
    let uids = |pick: &Pick| pick.uids.contains(&uid);
    let outbound = capture.outbound.as_ref();
    if capture.lets_go(uid, gid) || outbound.is_some_and(|way| uids(&way.except)) {
        return None;
    }
    match outbound {
        Some(way) if way.only.uids.is_empty() || uids(&way.only) => Some(Taken::Connections),
        _ => capture.dns.as_ref().map(|_| Taken::Questions),
    }
}

fn words(capture: &Capture, taken: Taken, uid: u32, gid: u32) -> String {
    let what = match taken {
        Taken::Connections => "connections would be brought back to it, and end as `looped`",
        Taken::Questions => "questions to name servers would be brought back to it, and get no answer",
    };
    format!(
        "redirect: by the file the kernel's rules let {} go, and this sidecar is user {uid}, group {gid}: unless `apply` was \
         given `--uid {uid}`, its own {what}; run it as whom they let go, or set `redirect.uid: {uid}` (for an app of another user) and run `outrigger redirect \
         apply` again",
        capture.sidecar()
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::facts::Facts;
    use crate::config::problem::Problems;
    use crate::plan::Plan;

    fn capture(redirect: &str) -> Plan {
        let mut problems = Problems::new("f");
        let dns = "dns: { listen: [\"127.0.0.1:15053\", \"[::1]:15053\"] }";
        let text = format!("service: s\ninbound: {{ app: \"127.0.0.1:8\" }}\n{dns}\nredirect: {{ {redirect} }}\n");
        let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
        let plan = crate::plan::build::build(&document.config, Path::new("/"), &mut problems).plan;
        assert!(!problems.has_errors(), "{problems}");
        plan
    }

    #[test]
    fn the_doors_look_out_where_what_this_process_sends_may_come_back() {
        let watched = |redirect: &str, captured, taken| watched(capture(redirect).redirect.as_deref(), captured, taken);
        for (captured, taken, expect) in [
            (Captured::Not, None, Watch::Spared),
            (Captured::Not, Some(Taken::Questions), Watch::Spared),
            (Captured::Not, Some(Taken::Connections), Watch::Captured),
            (Captured::Rules, None, Watch::Spared),
            (Captured::Proxy, None, Watch::Spared),
            // Its ports are its own, and may be those of ours at any time.
            (Captured::Network, None, Watch::Off),
        ] {
            assert_eq!(watched("", captured, taken), expect, "{captured:?} {taken:?}");
            assert_eq!(watched("outbound: off", captured, taken), Watch::Off, "{captured:?} {taken:?}");
        }
        assert_eq!(super::watched(None, Captured::Not, None), Watch::Off);
    }

    #[test]
    fn who_is_not_let_go_is_told_so() {
        let said = |redirect: &str, uid, gid| {
            let plan = capture(redirect);
            let capture = plan.redirect.as_deref().unwrap();
            taken(capture, uid, gid).map(|taken| words(capture, taken, uid, gid))
        };
        for (redirect, uid, gid, expect) in [
            ("", 1337, 0, None),
            (
                "",
                0,
                1337,
                Some(
                    "let user 1337 go, and this sidecar is user 0, group 1337: unless `apply` was given `--uid 0`, its own connections",
                ),
            ),
            ("uid: 0", 0, 0, None),
            ("uid: 5, gid: 7", 0, 7, None),
            ("uid: 5, gid: 7", 7, 5, Some("let user 5 or group 7 go, and this sidecar is user 7, group 5")),
            ("inbound: off", 0, 0, Some("its own connections")),
            ("outbound: off", 0, 0, None),
            ("outbound: { except: { uids: [0] } }, dns: all", 0, 0, None),
            ("outbound: { only: { uids: [1000] } }", 0, 0, None),
            ("outbound: { only: { uids: [1000] } }", 1000, 0, Some("its own connections")),
            ("outbound: { only: { uids: [1000] } }, dns: all", 0, 0, Some("its own questions to name servers")),
            ("outbound: off, dns: all", 0, 0, Some("its own questions to name servers")),
        ] {
            match (said(redirect, uid, gid), expect) {
                (None, None) => {}
                (Some(said), Some(expect)) => assert!(said.contains(expect), "{redirect}: {said}"),
                (said, _) => panic!("{redirect} as {uid}/{gid}: {said:?}"),
            }
        }
    }
}
