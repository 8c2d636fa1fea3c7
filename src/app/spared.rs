//! Whether the rules of `redirect apply` let this sidecar's own connections go, as far as the file tells.

use rustix::process::{getegid, geteuid};
use tracing::warn;

use crate::control::reload::Captured;
use crate::net::ours::{Watch, watch};
use crate::plan::redirect::Capture;

/// Tells where they do not, and has the doors look out for what comes back. What is made for an app alone knows this
/// process by itself.
pub(super) fn look(capture: Option<&Capture>, captured: Captured) {
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let said = capture.filter(|_| captured == Captured::Not).and_then(|capture| unspared(capture, uid, gid));
    watch(match (capture.and_then(|capture| capture.outbound.as_ref()), &said) {
        (None, _) => Watch::Off,
        (Some(_), None) => Watch::Spared,
        (Some(_), Some(_)) => Watch::Captured,
    });
    if let Some(said) = said {
        warn!("{said}");
    }
}

/// Why what a sidecar of this user and group sends is captured too.
fn unspared(capture: &Capture, uid: u32, gid: u32) -> Option<String> {
    if capture.lets_go(uid, gid) || (capture.outbound.is_none() && capture.dns.is_none()) {
        return None;
    }
    let what = match capture.outbound {
        Some(_) => "connections would be brought back to it, and end as `looped`",
        None => "questions to name servers would be brought back to it, and get no answer",
    };
    Some(format!(
        "redirect: by the file the kernel's rules let {} go, and this sidecar is user {uid}, group {gid}: its own {what}; \
         run it as whom they let go, or set `redirect.uid: {uid}` (for an app of another user) and run `outrigger redirect \
         apply` again",
        capture.sidecar()
    ))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::facts::Facts;
    use crate::config::problem::Problems;

    #[test]
    fn who_is_not_let_go_is_told_so() {
        let said = |redirect: &str, uid, gid| {
            let mut problems = Problems::new("f");
            let dns = "dns: { listen: [\"127.0.0.1:15053\", \"[::1]:15053\"] }";
            let text = format!("service: s\ninbound: {{ app: \"127.0.0.1:8\" }}\n{dns}\nredirect: {{ {redirect} }}\n");
            let document = crate::config::read(&text, &Facts::PLAIN, &|_| None, &mut problems).unwrap();
            let plan = crate::plan::build::build(&document.config, Path::new("/"), &mut problems).plan;
            assert!(!problems.has_errors(), "{problems}");
            unspared(plan.redirect.as_deref().unwrap(), uid, gid)
        };
        for (redirect, uid, gid, expect) in [
            ("", 1337, 0, None),
            ("", 0, 1337, Some("let user 1337 go, and this sidecar is user 0, group 1337: its own connections")),
            ("uid: 0", 0, 0, None),
            ("uid: 5, gid: 7", 0, 7, None),
            ("uid: 5, gid: 7", 7, 5, Some("let user 5 or group 7 go, and this sidecar is user 7, group 5")),
            ("inbound: off", 0, 0, Some("its own connections")),
            ("outbound: off", 0, 0, None),
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
