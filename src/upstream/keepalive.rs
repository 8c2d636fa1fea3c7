//! How long an idle HTTP/1 connection may be kept: always a little less than the server keeps it, once that is known.

use std::time::Duration;

use tokio::time::Instant;

/// A server's word is believed up to this.
const LONGEST: Duration = Duration::from_secs(90);

/// A connection closed sooner than this after its answer was not closed for being idle.
const NOT_IDLENESS: Duration = Duration::from_millis(100);

/// What was concluded from a close is forgotten after this: it may have been a restart.
const FORGET: Duration = Duration::from_secs(600);

/// What is known about a server's keep-alive.
#[derive(Debug, Default)]
pub struct KeepAlive {
    /// From its `Keep-Alive: timeout=` field.
    told: Option<Duration>,
    /// The shortest idle time after which it closed, and when that was.
    seen: Option<(Duration, Instant)>,
}

impl KeepAlive {
    /// The server said how long it keeps idle connections.
    pub fn told(&mut self, timeout: Duration) {
        self.told = Some(timeout.min(LONGEST));
    }

    /// The server closed a connection that had been idle for `age`.
    pub fn closed_idle(&mut self, now: Instant, age: Duration) {
        if age < NOT_IDLENESS {
            return;
        }
        let shortest = match self.seen_at(now) {
            Some(seen) => seen.min(age),
            None => age,
        };
        self.seen = Some((shortest, now));
    }

    /// How long a connection may be idle and still be used; `unlearned` as long as the server has not shown it.
    pub fn limit(&self, now: Instant, unlearned: Duration) -> Duration {
        let told = self.told.map_or(unlearned, with_margin);
        self.seen_at(now).map_or(told, |seen| told.min(with_margin(seen)))
    }

    fn seen_at(&self, now: Instant) -> Option<Duration> {
        self.seen.filter(|(_, when)| now.saturating_duration_since(*when) < FORGET).map(|(age, _)| age)
    }
}

/// A fifth less, at most a second: our request must reach the server before its timer does.
fn with_margin(server: Duration) -> Duration {
    server - (server / 5).min(Duration::from_secs(1))
}

/// The `timeout` of a `Keep-Alive` field, in whole seconds.
pub fn parse(field: &str) -> Option<Duration> {
    field.split(',').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let seconds = name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().trim_matches('"'))?;
        seconds.parse::<u32>().ok().map(|seconds| Duration::from_secs(seconds.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_below_what_the_server_said_or_did() {
        let (now, four) = (Instant::now(), Duration::from_secs(4));
        let ms = Duration::from_millis;
        let mut keep = KeepAlive::default();
        assert_eq!(keep.limit(now, four), four);
        keep.told(ms(75_000));
        assert_eq!(keep.limit(now, four), ms(74_000));
        keep.told(Duration::from_secs(86_400));
        assert_eq!(keep.limit(now, four), ms(89_000));
        keep.closed_idle(now, ms(20));
        assert_eq!(keep.limit(now, four), ms(89_000));
        keep.closed_idle(now, ms(2_000));
        keep.closed_idle(now, ms(3_000));
        assert_eq!(keep.limit(now, four), ms(1_600));
        assert_eq!(keep.limit(now + FORGET, four), ms(89_000));
    }

    #[test]
    fn a_field_is_read_leniently_and_never_wrongly() {
        for (field, want) in [
            ("timeout=5", Some(5)),
            ("timeout=5, max=100", Some(5)),
            ("max=100, Timeout = \"72\"", Some(72)),
            ("max=100", None),
            ("timeout=", None),
            ("timeout=-1", None),
            ("timeout=99999999999", None),
            ("", None),
        ] {
            assert_eq!(parse(field), want.map(Duration::from_secs), "{field}");
        }
    }
}
