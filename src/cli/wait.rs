//! `outrigger wait`: blocks until the sidecar is ready, for start scripts.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::{Instant, sleep};

use super::complain;
use crate::control::admin::client::ask;
use crate::ids::Addr;

/// Between two questions: from this, doubled, up to [`LONGEST_REST`].
const FIRST_REST: Duration = Duration::from_millis(10);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// One question takes no longer.
const CLOCK: Duration = Duration::from_secs(3);

/// Where the admin server is where nothing else is said.
pub(super) const DEFAULT_ADMIN: &str = "127.0.0.1:15000";

/// Runs the command; `admin` is what `--admin` or OUTRIGGER_ADMIN says.
pub fn run(admin: Option<&str>, timeout: Duration, app: bool, err: &mut dyn Write) -> ExitCode {
    let text = admin.unwrap_or(DEFAULT_ADMIN);
    let done = text.parse::<Addr>().map_err(|error| format!("--admin {text}: {error}")).and_then(|admin| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
        let wait = Wait { admin, timeout, app };
        runtime.block_on(wait.run()).map_err(|error| error.to_string())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => complain(err, &why),
    }
}

/// What to wait for.
#[derive(Debug, Clone)]
pub struct Wait {
    /// Where the admin server is asked.
    pub admin: Addr,
    /// How long at most.
    pub timeout: Duration,
    /// Whether the app must take connections too.
    pub app: bool,
}

/// It was not ready in time.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not ready within {within:?}: {why}")]
pub struct NotReady {
    within: Duration,
    /// The last answer's reasons, or why there was none.
    why: String,
}

impl Wait {
    /// Asks until the answer is yes.
    ///
    /// # Errors
    /// When it was not within the timeout; says what the last answer was.
    pub async fn run(&self) -> Result<(), NotReady> {
        let path = if self.app { "/ready?app" } else { "/ready" };
        let end = Instant::now() + self.timeout;
        let mut rest = FIRST_REST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let why = match ask(&self.admin, Method::GET, path, CLOCK.min(left).max(FIRST_REST)).await {
                Ok((StatusCode::OK, _)) => return Ok(()),
                Ok((status, body)) => reasons(status, &body),
                Err(error) => format!("{error}; is it running, with `admin: {}`?", self.admin),
            };
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(NotReady { within: self.timeout, why });
            }
            sleep(rest.min(left)).await;
            rest = (rest * 2).min(LONGEST_REST);
        }
    }
}

fn reasons(status: StatusCode, body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() { format!("status {}", status.as_u16()) } else { lines.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::admin::answer::Surface;
    use crate::control::admin::listen::Listener;
    use crate::control::admin::serve;
    use crate::control::testing::{House, plan};
    use crate::life::tasks::Tasks;
    use crate::plan::AdminPlan;

    fn wait(admin: Addr, timeout: Duration) -> Wait {
        Wait { admin, timeout, app: false }
    }

    #[tokio::test]
    async fn it_ends_when_the_sidecar_is_ready() {
        let (fake, tasks) = (House::new(plan()), Tasks::default());
        let listen: Addr = "127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind(&listen).await.unwrap();
        let admin = Addr::Tcp(listener.local_addr().unwrap());
        let surface = Surface::Admin(AdminPlan { listen, token: None });
        tasks.spawn(serve(listener, fake.house.clone(), surface, tasks.clone()));

        let not_yet = wait(admin.clone(), Duration::ZERO).run().await.unwrap_err();
        assert_eq!(not_yet.to_string(), "not ready within 0ns: starting: the doors are not open yet");

        let waiting = tasks.run({
            let wait = wait(admin.clone(), Duration::from_secs(60));
            async move { wait.run().await }
        });
        fake.house.opened.set();
        assert_eq!(waiting.await.unwrap(), Ok(()));

        let with_app = Wait { app: true, ..wait(admin, Duration::ZERO) };
        let no_app = with_app.run().await.unwrap_err();
        assert!(no_app.why.contains("127.0.0.1:1"), "{no_app}");
    }

    #[tokio::test]
    async fn it_says_that_nobody_is_there() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = wait(free.into(), Duration::from_millis(30)).run().await.unwrap_err();
        assert!(error.why.contains("cannot connect") && error.why.contains("is it running"), "{error}");
        let error = wait("unix:/no/such/socket".parse().unwrap(), Duration::ZERO).run().await.unwrap_err();
        assert!(error.why.contains("unix:/no/such/socket"), "{error}");
    }
}
