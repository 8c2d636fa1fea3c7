//! The demo as text: a table that is drawn over itself on a terminal, a line per second elsewhere, a summary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use super::load::{RATE, Tally, share};
use super::mesh::FLAKY;
use super::numbers::{Counts, Told};

/// What is known after one more second.
pub(super) struct Frame<'a> {
    pub(super) elapsed: Duration,
    pub(super) duration: Duration,
    /// Since the start, as the callers of `web` see it.
    pub(super) tally: &'a Tally,
    /// Requests sent in the last interval.
    pub(super) recent: u64,
    pub(super) interval: Duration,
    pub(super) told: &'a Told,
    pub(super) before: &'a Told,
    pub(super) first: &'a Told,
}

/// Shows frames on a terminal or not.
pub(super) struct View {
    terminal: bool,
    drawn: usize,
}

impl View {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, drawn: 0 }
    }

    /// Shows a frame.
    pub(super) fn show(&mut self, frame: &Frame<'_>, out: &mut dyn Write) -> io::Result<()> {
        if !self.terminal {
            writeln!(out, "{}", line(frame))?;
            return out.flush();
        }
        if self.drawn > 0 {
            // Up to the first line of the last table, and clear from there.
            write!(out, "\x1b[{}F\x1b[J", self.drawn)?;
        }
        let table = table(frame);
        self.drawn = table.lines().count();
        out.write_all(table.as_bytes())?;
        out.flush()
    }
}

fn recent<'a>(frame: &'a Frame<'_>) -> impl Iterator<Item = (&'static str, Counts)> + 'a {
    frame.told.counts.iter().map(|(name, now)| (*name, now.since(&frame.before.of(name))))
}

fn reasons(from: &Told, to: &Told) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for (name, now) in &to.counts {
        let since = now.since(&from.of(name));
        for (reason, count) in since.reasons {
            *all.entry(format!("{reason} at {name}")).or_default() += count;
        }
    }
    all
}

/// One line, for logs and pipes.
fn line(frame: &Frame<'_>) -> String {
    let mut line = format!(
        "{:>3} s  {:>6.1} requests/s  {:>6.2} % ok  p50 {}  p99 {} ",
        frame.elapsed.as_secs(),
        per_second(frame.recent, frame.interval),
        frame.tally.percent(),
        millis(frame.tally.latency.quantile(0.5)),
        millis(frame.tally.latency.quantile(0.99)),
    );
    for (name, counts) in recent(frame).filter(|(name, _)| name.starts_with("inventory")) {
        // Writing into a String cannot fail; so below.
        let _ = write!(line, " {name} {:.0}/s", per_second(counts.requests, frame.interval));
    }
    line
}

fn table(frame: &Frame<'_>) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "outrigger demo    {} s of {} s    {RATE} requests/s on web > cart > inventory (two instances)\n",
        frame.elapsed.as_secs(),
        frame.duration.as_secs()
    );
    let head = ["service", "requests/s", "success", "p50", "p99"];
    let _ = writeln!(text, "{:<14}{:>11}{:>11}{:>11}{:>11}", head[0], head[1], head[2], head[3], head[4]);
    let tally = frame.tally;
    let rate = per_second(frame.recent, frame.interval);
    let quantiles = [0.5, 0.99].map(|part| tally.latency.quantile(part));
    row(&mut text, "the callers", rate, (tally.requests() > 0).then(|| tally.percent()), quantiles, "since the start");
    for (name, counts) in recent(frame) {
        let note = if name == FLAKY { "slow and flaky" } else { "" };
        let rate = per_second(counts.requests, frame.interval);
        let quantiles = [0.5, 0.99].map(|part| counts.quantile(part));
        row(&mut text, name, rate, (counts.requests > 0).then(|| counts.percent()), quantiles, note);
    }
    let _ = writeln!(
        text,
        "\n{:<26}{:>10}{:>11}{:>11}{:>13}",
        "caller > endpoint", "", "rated", "in flight", "connections"
    );
    for endpoint in &frame.told.endpoints {
        let who = format!("{} > {}", endpoint.caller, endpoint.name);
        let latency = endpoint.latency_ms.map_or("-".into(), |ms| format!("{ms:.1} ms"));
        let error = endpoint.last_error.as_deref().unwrap_or_default();
        let (in_flight, connections) = (endpoint.in_flight, endpoint.connections);
        let address = endpoint.address.strip_prefix("127.0.0.1").unwrap_or(&endpoint.address);
        let _ = writeln!(text, "{who:<26}{address:>10}{latency:>11}{in_flight:>11}{connections:>13}  {error}");
    }
    text.push_str("rated: the time to an answer that the caller's sidecar reckons with; failures count as slow\n");
    let reasons = reasons(frame.first, frame.told);
    let said: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    let _ = writeln!(
        text,
        "\nreasons of failures, in the words of the log and of Proxy-Status: {}",
        if said.is_empty() { "none".into() } else { said.join("; ") }
    );
    text
}

fn row(text: &mut String, name: &str, rate: f64, percent: Option<f64>, quantiles: [Option<Duration>; 2], note: &str) {
    let percent = percent.map_or("-".into(), |percent| format!("{percent:.2} %"));
    let [p50, p99] = quantiles.map(millis);
    let _ = writeln!(text, "{name:<14}{rate:>11.1}{percent:>11}{p50:>11}{p99:>11}  {note}");
}

fn per_second(count: u64, interval: Duration) -> f64 {
    count as f64 / interval.as_secs_f64().max(1e-3)
}

fn millis(duration: Option<Duration>) -> String {
    duration.map_or("-".into(), |duration| format!("{:.1} ms", duration.as_secs_f64() * 1e3))
}

/// The share of the callers' requests that must succeed, in percent.
pub(super) const EXPECTED: f64 = 99.0;

/// What happened, and whether it is what was expected.
pub(super) fn summary(tally: &Tally, elapsed: Duration, first: &Told, last: &Told, refusals: usize) -> (String, bool) {
    let (requests, percent) = (tally.requests(), tally.percent());
    let mut text = format!(
        "\n{requests} requests in {:.1} s: {percent:.2} % succeeded, p50 {}, p99 {}.\n",
        elapsed.as_secs_f64(),
        millis(tally.latency.quantile(0.5)),
        millis(tally.latency.quantile(0.99)),
    );
    for (what, count) in tally.failed.iter().take(10) {
        let _ = writeln!(text, "  {count:>6} x {what}");
    }
    let flaky = |told: &Told| told.of(FLAKY).requests;
    let all = |told: &Told| {
        let inventory = told.counts.iter().filter(|(name, _)| name.starts_with("inventory"));
        inventory.map(|(_, counts)| counts.requests).sum::<u64>()
    };
    let (got, of) = (flaky(last).saturating_sub(flaky(first)), all(last).saturating_sub(all(first)));
    let _ = writeln!(
        text,
        "{FLAKY} is slow and fails 15 % of its requests; it got {:.1} % of inventory's requests ({got} of {of}), because\n\
         cart's sidecar prefers the endpoint that answers soonest and counts failures as slow. Answers of 500\n\
         are not retried unless the file says so: what {FLAKY} failed, the callers saw.",
        if of == 0 { 0.0 } else { share(got, of) }
    );
    let sidecars = last.counts.len();
    let _ = writeln!(
        text,
        "All calls were by mutual TLS, each sidecar with a certificate of a throw-away authority and for its one caller;\n\
         {refusals} of {sidecars} sidecars refused a call in plaintext."
    );
    let secure = refusals == sidecars;
    let (enough, good) = (requests >= u64::from(RATE) * elapsed.as_secs() / 2, percent >= EXPECTED);
    let verdict = match (enough && requests > 0, good) {
        _ if !secure => "Not as expected: a sidecar took a call in plaintext.".to_owned(),
        (true, true) => format!("As expected: at least {EXPECTED} % succeeded."),
        (true, false) => format!("Not as expected: less than {EXPECTED} % succeeded."),
        (false, _) => format!("Not as expected: this machine did not keep up with {RATE} requests/s."),
    };
    let _ = writeln!(text, "{verdict}");
    (text, enough && good && requests > 0 && secure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::numbers::Endpoint;

    fn told(requests: u64) -> Told {
        let counts = |requests| Counts { requests, ..Counts::default() };
        let endpoint = Endpoint {
            caller: "cart",
            name: FLAKY.into(),
            address: "127.0.0.1:4242".into(),
            latency_ms: Some(81.25),
            in_flight: 1,
            connections: 2,
            last_error: None,
        };
        Told {
            counts: vec![("web", counts(requests)), ("inventory-1", counts(requests)), (FLAKY, counts(5))],
            endpoints: vec![endpoint],
        }
    }

    fn tally(succeeded: u64, failed: u64) -> Tally {
        Tally { succeeded, failed: BTreeMap::from([("500: no".to_owned(), failed)]), ..Tally::default() }
    }

    fn shown(view: &mut View, tally: &Tally) -> String {
        let (told, before) = (told(200), Told::default());
        let second = Duration::from_secs(1);
        let frame = Frame {
            elapsed: second,
            duration: second * 20,
            tally,
            recent: 200,
            interval: second,
            told: &told,
            before: &before,
            first: &before,
        };
        let mut out = Vec::new();
        view.show(&frame, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_terminal_is_drawn_over_and_a_pipe_gets_lines() {
        let mut terminal = View::new(true);
        let first = shown(&mut terminal, &tally(200, 0));
        assert!(
            !first.contains('\x1b') && first.contains("cart > inventory-2") && first.contains("81.2 ms"),
            "{first}"
        );
        assert!(first.lines().all(|line| line.chars().count() <= 100), "{first}");
        let second = shown(&mut terminal, &tally(200, 0));
        assert!(second.starts_with(&format!("\x1b[{}F\x1b[J", first.lines().count())), "{second:?}");
        let line = shown(&mut View::new(false), &tally(198, 2));
        assert_eq!(line.lines().count(), 1);
        assert!(
            line.contains("200.0 requests/s") && line.contains("99.00 % ok") && line.contains("inventory-2 5/s"),
            "{line}"
        );
    }

    #[test]
    fn the_verdict_follows_the_numbers() {
        let elapsed = Duration::from_secs(2);
        for (succeeded, failed, refusals, good, word) in [
            (400, 0, 3, true, "As expected"),
            (397, 3, 3, true, "As expected"),
            (390, 10, 3, false, "less than 99 %"),
            (400, 0, 2, false, "took a call in plaintext"),
            (100, 0, 3, false, "did not keep up"),
            (0, 0, 3, false, "did not keep up"),
        ] {
            let (text, found) = summary(&tally(succeeded, failed), elapsed, &Told::default(), &told(95), refusals);
            assert_eq!(found, good, "{text}");
            assert!(text.contains(word) && text.contains("5.0 % of inventory's requests (5 of 100)"), "{text}");
        }
    }
}
