//! `outrigger redirect`: the kernel's rules for transparent interception, brought into force, shown, tried, taken away.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{File, complain, duration, explain};
use crate::config::expand::Variables;
use crate::config::facts::Facts;
use crate::config::problem::Problems;
use crate::config::{self, Config};
use crate::control::load::read_bytes;
use crate::plan::build::redirect::capture;
use crate::plan::redirect::{Capture, is_link_local};
use crate::redirect::build::ruleset;
use crate::redirect::force::{self, InForce};
use crate::redirect::routing::What;
use crate::redirect::rules::{Action, Ruleset};
use crate::redirect::{TABLE, iptables, probe, text, words};

/// What is to be done with the rules.
#[derive(Subcommand)]
pub enum Command {
    /// Bring the rules into force, in place of earlier ones; all or nothing
    #[command(after_help = "Example: outrigger redirect apply -c outrigger.yaml\n\
        Needs CAP_NET_ADMIN in this network namespace, and only while it runs.\n\
        Exit codes: 0 they are in force, 1 nothing was changed.")]
    Apply {
        /// The configuration.
        #[command(flatten)]
        meant: Meant,
        /// Also where somebody else's rules redirect connections here already
        #[arg(long)]
        beside: bool,
    },
    /// Take the rules away; what others have set stays as it is
    #[command(after_help = "Exit codes: 0 there are none any more, 1 they could not be taken away.\n\
        What `script --iptables` has set, `script --iptables --remove` takes away.\n\
        Connections that were captured end.")]
    Remove,
    /// Say which rules are in force here, in words and as text for nft
    #[command(after_help = "Exit codes: 0 rules are in force, 1 none are, or they cannot be seen.")]
    Show,
    /// Print what `apply` would do, for nft or iptables; needs no privilege
    #[command(after_help = "Examples: outrigger redirect script -c outrigger.yaml | nft -f -\n          \
        outrigger redirect script -c outrigger.yaml --iptables | sh")]
    Script {
        /// The configuration.
        #[command(flatten)]
        meant: Meant,
        /// A shell script for iptables and ip6tables instead
        #[arg(long)]
        iptables: bool,
        /// The script that takes the rules away
        #[arg(long)]
        remove: bool,
    },
    /// Open a connection through the rules and say what became of it; needs no privilege
    #[command(after_help = "Example: outrigger redirect test -c outrigger.yaml\n\
        Run it as the service's user, before the sidecar starts or while it runs.\n\
        Exit codes: 0 it was captured, 1 it was not, or that cannot be told.")]
    Test {
        /// The configuration.
        #[command(flatten)]
        meant: Meant,
        /// Where to connect to [default: addresses for documentation, where nobody is]
        #[arg(long, value_name = "IP:PORT", value_parser = target)]
        to: Option<SocketAddr>,
        /// How long to wait
        #[arg(long, default_value = "5s", value_parser = duration, value_name = "TIME")]
        timeout: Duration,
    },
}

/// The file, and what may differ from it where an init container knows better.
#[derive(Args)]
pub struct Meant {
    #[command(flatten)]
    file: File,
    /// The user that the sidecar runs as, instead of the file's `redirect.uid`
    #[arg(long, value_parser = id)]
    uid: Option<u32>,
    /// A group whose traffic is left alone as well, instead of the file's `redirect.gid`
    #[arg(long, value_parser = id)]
    gid: Option<u32>,
}

/// Where a test may connect to. An IPv4 address in IPv6's notation is called over IPv4.
fn target(text: &str) -> Result<SocketAddr, String> {
    let to = explain::dialled(text)?;
    if to.ip().is_loopback() || to.ip().is_unspecified() {
        return Err(format!("{} is this machine's loopback, which is never captured: name another address", to.ip()));
    }
    if is_link_local(to.ip()) {
        return Err(format!("{} is a link-local address, which is never captured: name another address", to.ip()));
    }
    Ok(to)
}

fn id(text: &str) -> Result<u32, String> {
    use crate::config::kind::Scalar as _;
    let id = crate::config::redirect::UserId::parse(text);
    id.map(|id| id.0).map_err(|wrong| wrong.why.unwrap_or_else(|| "not the number of a user or group".to_owned()))
}

impl Command {
    /// Whether it needs the configuration, and which.
    fn meant(&self) -> Option<&Meant> {
        match self {
            Self::Apply { meant, .. } | Self::Script { meant, .. } | Self::Test { meant, .. } => Some(meant),
            Self::Remove | Self::Show => None,
        }
    }
}

/// Runs the command; `path` finds the configuration.
pub fn run(
    command: Command,
    path: impl Fn(&File) -> PathBuf,
    facts: &Facts,
    variables: Variables<'_>,
    (out, err): (&mut dyn Write, &mut dyn Write),
) -> ExitCode {
    let unsaid = if matches!(command, Command::Script { .. }) { Unsaid::Told } else { Unsaid::Refused };
    let meant = match command.meant().map(|meant| meant.read(&path(&meant.file), unsaid, facts, variables)) {
        None => None,
        Some(Ok((capture, warnings))) => {
            // Where even stderr is closed, the exit code has to say it.
            let _ = err.write_all(warnings.as_bytes());
            Some(capture)
        }
        Some(Err(problems)) => {
            let _ = writeln!(err, "{problems}");
            return ExitCode::FAILURE;
        }
    };
    let done = match (command, meant) {
        (Command::Apply { beside, .. }, Some(capture)) => apply(&capture, beside, err),
        (Command::Script { iptables, remove, .. }, Some(capture)) => Ok((script(&capture, iptables, remove), true)),
        (Command::Test { to, timeout, .. }, Some(capture)) => test(&capture, to, timeout),
        (Command::Show, _) => show(err),
        _ => remove(err),
    };
    match done {
        Ok((text, fine)) => match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) if fine => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        },
        Err(why) => complain(err, &why),
    }
}

/// What becomes of a file without the section: its sidecar takes captured connections for those of explicit mode, and leads
/// them to wrong places.
#[derive(Clone, Copy)]
enum Unsaid {
    Refused,
    Told,
}

impl Unsaid {
    fn judge(self, config: &Config, problems: &mut Problems) {
        let add = "add `redirect: {}` (all at its default) and reload or restart it";
        match self {
            _ if config.redirect.is_some() => {}
            Self::Refused => {
                let text = format!("without this section the sidecar does not know captured connections: {add}");
                problems.error("redirect", None, text, None);
            }
            Self::Told => {
                let text = format!("without this section the sidecar does not know what these rules send it: {add}");
                problems.warning("redirect", None, text);
            }
        }
    }
}

impl Meant {
    /// What the file says, with warnings as text. No other file that it names is opened: an init step may not have them.
    fn read(
        &self,
        path: &Path,
        unsaid: Unsaid,
        facts: &Facts,
        variables: Variables<'_>,
    ) -> Result<(Capture, String), Problems> {
        let mut problems = Problems::new(path.display().to_string());
        let text = match read_bytes(path).and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
        {
            Ok(text) => text,
            Err(why) => {
                problems.error("", None, format!("cannot be read: {why}"), None);
                return Err(problems);
            }
        };
        let document = config::read(&text, facts, variables, &mut problems);
        let capture = document.and_then(|document| {
            unsaid.judge(&document.config, &mut problems);
            capture(&document.config, &mut problems)
        });
        let problems = problems.sorted();
        match capture {
            Some(mut capture) if !problems.has_errors() => {
                capture.uid = self.uid.unwrap_or(capture.uid);
                capture.gid = self.gid.or(capture.gid);
                let warnings = problems.list().iter().map(|warning| format!("{warning}\n")).collect();
                Ok((capture, warnings))
            }
            _ => Err(problems),
        }
    }
}

type Done = Result<(String, bool), String>;

fn apply(capture: &Capture, beside: bool, err: &mut dyn Write) -> Done {
    let ruleset = ruleset(capture, force::has_ipv6());
    force::apply(&ruleset, beside)?;
    warn_of_legacy(err);
    Ok((format!("rules are in force:\n{}", words::words(&ruleset.chains)), true))
}

fn warn_of_legacy(err: &mut dyn Write) {
    if let Some(note) = force::legacy_note() {
        let _ = writeln!(err, "outrigger: warning: {note}");
    }
}

fn remove(err: &mut dyn Write) -> Done {
    let text = if force::remove()? { "the rules are gone" } else { "there are no rules of outrigger's here" };
    warn_of_legacy(err);
    Ok((format!("{text}\n"), true))
}

fn show(err: &mut dyn Write) -> Done {
    warn_of_legacy(err);
    let in_force = force::look()?;
    let InForce { chains, stranger, routing, script, .. } = &in_force;
    if let (Some(_), Some(why)) = (chains, stranger) {
        return Err(format!("the table `inet {TABLE}` was not made by `outrigger redirect`: {why}"));
    }
    let script = if script.is_empty() { String::new() } else { format!("{}\n", force::of_script_words(script)) };
    let Some(chains) = chains else {
        if !script.is_empty() {
            return Ok((script, true));
        }
        let left = if routing.is_empty() {
            ""
        } else {
            "; what is left of earlier ones, `outrigger redirect remove` takes away:"
        };
        return Ok((format!("no rules of outrigger's are in force here{left}\n{}", force::as_text(&in_force)), false));
    };
    let missing = missing_routing(&in_force).unwrap_or_default();
    let text = format!("{script}rules are in force:\n{}{missing}\n{}", words::words(chains), force::as_text(&in_force));
    Ok((text, missing.is_empty()))
}

/// A line where the table needs policy routing that is not there: somebody else took it away.
fn missing_routing(in_force: &InForce) -> Option<String> {
    let rules = in_force.chains.iter().flatten().flat_map(|chain| &chain.rules);
    let mark = rules.flat_map(|rule| &rule.actions).find_map(|action| match action {
        Action::MarkConnection(mark) => Some(*mark),
        _ => None,
    })?;
    let there = in_force.routing.iter().any(|entry| matches!(entry.what, What::Rule { mark: own, .. } if own == mark));
    (!there).then(|| {
        format!("  but the rule of policy routing for mark {mark:#x} is gone: run `outrigger redirect apply` again\n")
    })
}

fn script(capture: &Capture, as_iptables: bool, remove: bool) -> String {
    let v6 = force::has_ipv6();
    let ruleset: Ruleset = ruleset(capture, v6);
    match (as_iptables, remove) {
        (true, remove) => iptables::script(&ruleset, v6, remove),
        (false, false) => text::script(&ruleset),
        (false, true) => text::remove(&ruleset),
    }
}

fn test(capture: &Capture, to: Option<SocketAddr>, timeout: Duration) -> Done {
    if capture.outbound.is_none() {
        return Err("`redirect.outbound` is off: there is nothing to try from here; inbound connections have to come from another host".into());
    }
    if let Some(why) = probe::exempt(capture) {
        return Err(why);
    }
    let findings = probe::probe(capture, to, force::has_ipv6(), timeout);
    let said: Vec<Option<bool>> = findings.iter().map(probe::Finding::captured).collect();
    let fine = said.contains(&Some(true)) && !said.contains(&Some(false));
    let text = findings.iter().map(|finding| format!("{finding}\n")).collect();
    Ok((text, fine))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_not_tried_whatever_its_notation() {
        for to in ["127.0.0.1:8080", "127.9.9.9:80", "[::1]:80", "0.0.0.0:80", "[::]:80", "[::ffff:127.0.0.1]:80"] {
            assert!(target(to).unwrap_err().contains("loopback, which is never captured"), "{to}");
        }
        assert!(target("[fe80::1]:80").unwrap_err().contains("link-local address, which is never captured"));
        assert_eq!(target("[::ffff:10.77.0.3]:80"), Ok("10.77.0.3:80".parse().unwrap()));
        assert_eq!(target("[fd00::1]:80"), Ok("[fd00::1]:80".parse().unwrap()));
        assert!(target("10.77.0.3").unwrap_err().contains("10.1.2.3:5432"));
    }
}
