//! What the signals mean: reload, end, or a word for the app.
//!
//! | signal | alone | with `run … -- app` |
//! |---|---|---|
//! | TERM, INT, QUIT | end in order; the second one forces | the same; the app gets the first one when its turn has come |
//! | HUP | reload | reload; the app does not get it |
//! | USR1, USR2, WINCH | as the system has it | handed to the app |
//!
//! HUP stays with us because it is how a service manager asks for a reload, and an app that took it for the end (the
//! system's default) would be ended by a reload. Who wants the app to have one sends it to the app.
//!
//! A key on a terminal (^C, ^\, a resized window) makes the kernel signal the whole foreground group, in which the app
//! is too: then it is not handed on a second time.

use std::io;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Read the file again.
    Reload,
    /// End in order, or at once where that was asked for before; the app is to get this signal.
    End(Signal),
    /// Hand it to the app now.
    Hand(Signal),
}

/// The signals of this process, caught from the moment it is made.
pub struct Signals {
    hup: unix::Signal,
    term: unix::Signal,
    int: unix::Signal,
    quit: unix::Signal,
    /// Only with an app: without one, the system's defaults stay.
    handed: Option<[unix::Signal; 3]>,
}

impl Signals {
    /// Catches the signals. Must be called on the runtime that will read them.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn catch(with_app: bool) -> io::Result<Self> {
        let handed = if with_app {
            Some([
                unix::signal(SignalKind::user_defined1())?,
                unix::signal(SignalKind::user_defined2())?,
                unix::signal(SignalKind::window_change())?,
            ])
        } else {
            None
        };
        Ok(Self {
            hup: unix::signal(SignalKind::hangup())?,
            term: unix::signal(SignalKind::terminate())?,
            int: unix::signal(SignalKind::interrupt())?,
            quit: unix::signal(SignalKind::quit())?,
            handed,
        })
    }

    /// The next one; cancel-safe.
    pub async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.hup.recv() => Told::Reload,
            _ = self.term.recv() => Told::End(Signal::TERM),
            _ = self.int.recv() => Told::End(Signal::INT),
            _ = self.quit.recv() => Told::End(Signal::QUIT),
            signal = handed(&mut self.handed) => Told::Hand(signal),
        }
    }
}

async fn handed(signals: &mut Option<[unix::Signal; 3]>) -> Signal {
    let Some([usr1, usr2, winch]) = signals else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = usr1.recv() => Signal::USR1,
        _ = usr2.recv() => Signal::USR2,
        _ = winch.recv() => Signal::WINCH,
    }
}

/// The name of a signal that ends us, as `kill -l` has it.
pub fn name(signal: Signal) -> &'static str {
    match signal {
        signal if signal == Signal::INT => "SIGINT",
        signal if signal == Signal::QUIT => "SIGQUIT",
        _ => "SIGTERM",
    }
}

/// Whether the app has had this signal from the terminal already: it is one that a terminal sends, and we stand in the
/// terminal's foreground group. A signal sent to us alone at such a moment cannot be told apart; the app is then asked
/// to end at half of the grace.
pub fn terminal_sent(signal: Signal) -> bool {
    let from_terminal = signal == Signal::INT || signal == Signal::QUIT || signal == Signal::WINCH;
    from_terminal && std::fs::read_to_string("/proc/self/stat").is_ok_and(|stat| in_foreground(&stat))
}

/// Compares fields 5 (process group) and 8 (the terminal's foreground group, -1 without a terminal) of proc(5).
fn in_foreground(stat: &str) -> bool {
    let Some((_, after_name)) = stat.rsplit_once(')') else { return false };
    let mut fields = after_name.split_ascii_whitespace().skip(2);
    let (group, foreground) = (fields.next(), fields.nth(2));
    group.is_some() && group == foreground
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_group_is_read_by_place() {
        for (stat, expected) in [
            ("7 (a) S 1 40 40 34816 40 4194304", true),
            ("7 (a) 9) S 1 40 30 34816 40 4194304", true),
            ("7 (a) S 1 40 30 34816 41 4194304", false),
            ("7 (a) S 1 40 30 0 -1 4194304", false),
            ("7 (a) S 1", false),
            ("", false),
        ] {
            assert_eq!(in_foreground(stat), expected, "{stat}");
        }
    }

    #[tokio::test]
    async fn each_signal_means_one_thing() {
        let mut signals = Signals::catch(true).unwrap();
        for (signal, told) in [
            (Signal::HUP, Told::Reload),
            (Signal::TERM, Told::End(Signal::TERM)),
            (Signal::QUIT, Told::End(Signal::QUIT)),
            (Signal::USR1, Told::Hand(Signal::USR1)),
            (Signal::WINCH, Told::Hand(Signal::WINCH)),
        ] {
            rustix::process::kill_process(rustix::process::getpid(), signal).unwrap();
            assert_eq!(signals.next().await, told);
        }
    }
}
