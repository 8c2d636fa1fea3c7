//! The app that `outrigger run … -- app` starts: started, told, waited for; its end gives our exit code.
//!
//! The child is owned by its process id: one task alone calls wait(2), because as process 1 of a container we also
//! reap what orphaned processes leave, and a second waiter could take the app's status away. The app stays in our
//! process group, so that a terminal's foreground and keys work as without us.

use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, wait, waitpid};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::watch;
use tracing::{info, warn};

use super::signals::terminal_sent;
use crate::life::shutdown;
use crate::life::tasks::Tasks;

/// Why the app could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing follows `--`.
    #[error("no command follows `--`; write `outrigger run -c FILE -- COMMAND ARGS…`")]
    Empty,
    /// The command could not be run.
    #[error("cannot start `{command}`: {source}{hint}")]
    Command {
        /// The command as given.
        command: String,
        /// What the system said.
        source: io::Error,
        /// What may help, with its separator.
        hint: &'static str,
    },
    /// The system refuses the handler that tells of children's ends.
    #[error("cannot watch for the app's end: {0}")]
    Watch(io::Error),
}

impl StartError {
    /// Why a program could not be run, with what may help.
    pub fn of(program: &OsStr, source: io::Error) -> Self {
        let hint = match source.kind() {
            ErrorKind::NotFound => "; is it installed and in PATH?",
            ErrorKind::PermissionDenied => "; is it executable?",
            _ => "",
        };
        Self::Command { command: program.to_string_lossy().into_owned(), source, hint }
    }

    /// The exit code a shell would give: 127 when there is no such command, 126 when it cannot be run.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Command { source, .. } if source.kind() == ErrorKind::NotFound => 127,
            Self::Empty | Self::Command { .. } | Self::Watch(_) => 126,
        }
    }
}

/// What is done to an app at its start, so that it is behind the rules.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    /// A program with arguments that becomes the app; empty where the app is started itself.
    pub launcher: Vec<OsString>,
    /// Variables that it is given besides ours.
    pub variables: Vec<(&'static str, String)>,
    /// The user and group that it runs as, without further groups.
    pub user: Option<(u32, u32)>,
    /// Whether it is handed none of our capabilities; a launcher sees to that itself, once it needs them no more.
    pub bare: bool,
}

/// The running app.
pub struct Child {
    state: Arc<Mutex<State>>,
    ended: watch::Receiver<Option<ExitStatus>>,
    /// What the app gets when its turn to end has come: the signal that we got.
    farewell: Signal,
    /// It has had one already, from the terminal.
    asked: bool,
}

/// The lock is held while a signal is sent and while the status is taken: a process id is only ours until then.
struct State {
    pid: Option<Pid>,
}

impl Child {
    /// Starts `command` (a program, looked up in PATH, and its arguments) with our stdin, stdout, stderr, environment
    /// and folder, but for what `behind` says. `tasks` is where the task that waits for it lives.
    ///
    /// # Errors
    /// When it cannot be started; [`StartError::exit_code`] is what to exit with.
    pub fn start(command: &[OsString], behind: &Behind, tasks: &Tasks) -> Result<Self, StartError> {
        let name = command.first().ok_or(StartError::Empty)?;
        let words: Vec<&OsStr> = behind.launcher.iter().chain(command).map(OsString::as_os_str).collect();
        let (program, arguments) = words.split_first().ok_or(StartError::Empty)?;
        let mut start = Command::new(program);
        start.args(arguments).envs(behind.variables.iter().map(|(name, value)| (name, value)));
        if behind.bare {
            hand_nothing_on().map_err(|error| StartError::of(program, error.into()))?;
        }
        if let Some((uid, gid)) = behind.user {
            start.uid(uid).gid(gid);
        }
        Self::spawn(start, name, tasks)
    }

    fn spawn(mut command: Command, name: &OsStr, tasks: &Tasks) -> Result<Self, StartError> {
        // Before the start, so that even the shortest life is noticed.
        let children = unix::signal(SignalKind::child()).map_err(StartError::Watch)?;
        let child = command.spawn().map_err(|source| StartError::of(command.get_program(), source))?;
        // Dropping std's handle neither waits nor kills: from here on the process id is all there is.
        let pid = Pid::from_child(&child);
        info!(pid = pid.as_raw_pid(), command = %name.to_string_lossy(), "the app runs");
        let state = Arc::new(Mutex::new(State { pid: Some(pid) }));
        let (tell, ended) = watch::channel(None);
        let reaper = Reaper { state: state.clone(), app: pid, init: getpid().is_init(), tell };
        tasks.spawn(reaper.run(children));
        Ok(Self { state, ended, farewell: Signal::TERM, asked: false })
    }

    /// Hands a signal on, unless the app has it from the terminal already.
    pub fn hand(&self, signal: Signal) {
        if !terminal_sent(signal) {
            self.send(signal);
        }
    }

    /// Remembers the signal that asked us to end; the app gets it, instead of TERM, when its turn has come.
    pub fn end_with(&mut self, signal: Signal) {
        self.asked = terminal_sent(signal);
        // Should it live on after ^C, TERM says it in plain words.
        self.farewell = if self.asked { Signal::TERM } else { signal };
    }

    /// A future that waits for the app's end without borrowing it.
    pub fn end(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut ended = self.ended.clone();
        async move { wait_end(&mut ended).await }
    }

    /// Our exit code for the app's end, where it has ended: its own, or 128 + n when signal n ended it.
    pub fn exit_code(&self) -> Option<u8> {
        self.ended.borrow().map(exit_code)
    }

    fn send(&self, signal: Signal) {
        let state = self.state.lock();
        if let Some(pid) = state.pid
            && let Err(error) = kill_process(pid, signal)
        {
            warn!(%error, signal = signal.as_raw(), "the app could not be signalled");
        }
    }
}

/// Leaves programs that this thread starts from now on without a capability of ours, unless they are root's.
///
/// # Errors
/// The system's.
pub fn hand_nothing_on() -> Result<(), Errno> {
    // Before Linux 4.3 there was no such set.
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(error),
    }
    let sets = capabilities(None)?;
    set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets })
}

/// The exit code of a shell for a process's end.
pub fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code & 0xff).unwrap_or(1)
}

async fn wait_end(ended: &mut watch::Receiver<Option<ExitStatus>>) -> ExitStatus {
    match ended.wait_for(Option::is_some).await.map(|status| *status) {
        Ok(Some(status)) => status,
        // The reaper ends only after it has told, or with the runtime: nobody is left to read an answer.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

impl shutdown::App for Child {
    fn asked(&self) -> bool {
        self.asked
    }

    fn terminate(&mut self) {
        self.send(self.farewell);
    }

    fn kill(&mut self) {
        self.send(Signal::KILL);
    }

    async fn ended(&mut self) {
        wait_end(&mut self.ended).await;
    }
}

/// The one place that calls wait(2).
struct Reaper {
    state: Arc<Mutex<State>>,
    app: Pid,
    /// We are process 1: orphans become our children.
    init: bool,
    tell: watch::Sender<Option<ExitStatus>>,
}

impl Reaper {
    async fn run(self, mut children: unix::Signal) {
        // Signals coalesce: after each, everything that has ended is taken.
        while self.reap() && children.recv().await.is_some() {}
    }

    /// Takes the statuses that are there; `false` when there is nothing left to wait for.
    fn reap(&self) -> bool {
        loop {
            let mut state = self.state.lock();
            let taken = if self.init { wait(WaitOptions::NOHANG) } else { waitpid(state.pid, WaitOptions::NOHANG) };
            match taken {
                Ok(Some((pid, status))) if pid == self.app => {
                    state.pid = None;
                    drop(state);
                    self.told(status);
                    if !self.init {
                        return false;
                    }
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return true,
                // No child at all: as process 1, the next orphan may still come.
                Err(Errno::CHILD) => return self.init,
                Err(error) => {
                    warn!(%error, "cannot wait for the app");
                    return true;
                }
            }
        }
    }

    fn told(&self, status: WaitStatus) {
        let status = ExitStatus::from_raw(status.as_raw());
        info!(%status, "the app has ended");
        self.tell.send_replace(Some(status));
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::unix::pipe;

    use super::*;
    use crate::life::shutdown::App;

    fn sh(script: &str) -> Vec<OsString> {
        ["/bin/sh", "-c", script].map(OsString::from).to_vec()
    }

    async fn code_of(command: &[OsString]) -> u8 {
        let tasks = Tasks::default();
        let child = Child::start(command, &Behind::default(), &tasks).unwrap();
        child.end().await;
        tasks.idle().await;
        child.exit_code().unwrap()
    }

    #[tokio::test]
    async fn the_apps_code_is_ours() {
        for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
            assert_eq!(code_of(&sh(script)).await, code, "{script}");
        }
    }

    #[tokio::test]
    async fn what_cannot_be_started_fails_as_in_a_shell() {
        let tasks = Tasks::default();
        for (command, code, word) in [
            (vec![], 126, "--"),
            (vec!["/no/such/program".into()], 127, "installed"),
            (vec!["no-such-program-anywhere".into()], 127, "PATH"),
            (vec!["/etc/passwd".into()], 126, "executable"),
            (vec!["/".into()], 126, "executable"),
        ] {
            let error = Child::start(&command, &Behind::default(), &tasks).err().unwrap();
            assert_eq!(error.exit_code(), code, "{command:?}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    /// A shell that says each signal it gets on a pipe of its own, and `ready` once it listens.
    struct Listener {
        child: Child,
        said: tokio::io::Lines<BufReader<pipe::Receiver>>,
    }

    impl Listener {
        async fn start(on_term: &str) -> Self {
            let (theirs, ours) = pipe::pipe().unwrap();
            let script = format!(
                "trap 'echo usr1' USR1; trap 'echo usr2' USR2; trap '{on_term}' TERM; echo ready; \
                 while :; do sleep 0.02; done"
            );
            let mut command = Command::new("/bin/sh");
            command.args(["-c", &script]).stdout(theirs.into_blocking_fd().unwrap());
            let child = Child::spawn(command, "sh".as_ref(), &Tasks::default()).unwrap();
            let mut listener = Self { child, said: BufReader::new(ours).lines() };
            assert_eq!(listener.next().await, "ready");
            listener
        }

        async fn next(&mut self) -> String {
            self.said.next_line().await.unwrap().unwrap()
        }
    }

    #[tokio::test]
    async fn signals_are_handed_on_and_the_last_one_is_kept_for_the_end() {
        let mut listener = Listener::start("echo term; exit 7").await;
        listener.child.hand(Signal::USR1);
        assert_eq!(listener.next().await, "usr1");
        listener.child.end_with(Signal::USR2);
        listener.child.terminate();
        assert_eq!(listener.next().await, "usr2");
        listener.child.end_with(Signal::TERM);
        listener.child.terminate();
        assert_eq!(listener.next().await, "term");
        listener.child.ended().await;
        assert_eq!(listener.child.exit_code(), Some(7));
        // The process id may belong to someone else now.
        listener.child.kill();
    }

    #[tokio::test]
    async fn a_deaf_app_is_killed() {
        let mut listener = Listener::start("echo no").await;
        listener.child.terminate();
        assert_eq!(listener.next().await, "no");
        assert_eq!(listener.child.exit_code(), None);
        listener.child.kill();
        listener.child.ended().await;
        assert_eq!(listener.child.exit_code(), Some(137));
    }
}
