//! The sections `eject` and `health` of a peer: which of its endpoints are in the choice.

use super::collect::OrOff;
use super::kind::{Scalar, Set, Wrong};
use super::section::section;
use super::units::{Count, Share, Timer};
use super::values::DnsName;

section! {
    /// When an endpoint is taken out of the choice for a while, by what became of its requests.
    Eject {
        /// So many failures in a row, of each of the three kinds that follow.
        after "after": Set<Failures> = Is("5 failures");
        /// Answers of 500 to 599 in a row, or `off`; as `after` unless given.
        server_errors "server-errors": Option<Set<OrOff<Failures>>> = Follows("5 failures");
        /// Answers of 502, 503, 504 or gRPC's UNAVAILABLE in a row, or `off`; as `after` unless given.
        gateway_errors "gateway-errors": Option<Set<OrOff<Failures>>> = Follows("5 failures");
        /// Requests in a row without an answer (no connection, reset, too late), or `off`; as `after` unless given.
        local_failures "local-failures": Option<Set<OrOff<Failures>>> = Follows("5 failures");
        /// Part of its requests of the last 10 s that failed, clearly more than at the others; or `off`.
        failure_share "failure-share": Set<OrOff<Share>> = Is("20%");
        /// Mean latency of the last 10 s against that of the others.
        latency "latency": Option<Set<EjectLatency>> = Unset("{}");
        /// Requests of the last 10 s that it must have answered before the two above judge it.
        volume "volume": Set<Count<1, 1_000_000>> = Is("5");
        /// After this a request tries it again; doubled each time that fails.
        probe "probe": Set<Timer> = Is("1s");
        /// The longest time from one try to the next.
        longest "for": Set<Timer> = Is("10s");
        /// Part of the endpoints that may be out at one time, at least one; when all are out, any is chosen.
        most "most": Set<Share> = Is("100%");
    }
}

section! {
    /// When an endpoint's latency takes it out of the choice.
    EjectLatency {
        /// So many times the mean of the others.
        times "times": Set<Count<2, 100>> = Is("3");
        /// And so much slower than they.
        at_least "at-least": Set<Timer> = Is("50ms");
    }
}

section! {
    /// How endpoints are asked whether they are well; exactly one of `http`, `grpc` and `tcp`.
    Health {
        /// `GET` of this path; a status of 2xx is well.
        http "http": Option<Set<CheckPath>> = Sample("/healthz");
        /// gRPC's health service is asked for this service; empty is the whole server.
        grpc "grpc": Option<Set<CheckService>> = Unset("shop.Payments");
        /// A connection that can be made is well.
        tcp "tcp": Option<Set<bool>> = Unset("true");
        /// The host to ask for; by default the peer's TLS name, DNS name or name.
        host "host": Option<Set<DnsName>> = Unset("payments.shop.internal");
        /// From one check to the next, give or take a tenth.
        every "every": Set<Timer> = Is("5s");
        /// How long a check may take, connecting included.
        timeout "timeout": Set<Timer> = Is("1s");
        /// Passed checks in a row that make it healthy again.
        healthy "healthy": Set<Count<1, 100>> = Is("2");
        /// Failed checks in a row that make it unhealthy.
        unhealthy "unhealthy": Set<Count<1, 100>> = Is("3");
    }
}

/// A number of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures(pub u32);

impl Scalar for Failures {
    const NAME: &'static str = "failures";

    fn expected() -> String {
        "a number of failures such as `5 failures`".into()
    }

    fn pattern() -> String {
        "^(1 failure|[1-9][0-9]{0,5} failures)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits).unwrap_or((text, ""));
        let number = number.parse().ok().filter(|n| (1..=999_999).contains(n) && !number.starts_with('0'));
        match (number, unit) {
            (Some(1), " failure") => Ok(Self(1)),
            (Some(number), " failures") => Ok(Self(number)),
            (Some(number), _) => Err(Wrong::meant(Self(number).write())),
            (None, _) => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        if self.0 == 1 { "1 failure".into() } else { format!("{} failures", self.0) }
    }
}

/// The path of a health check, with or without a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckPath(pub String);

impl Scalar for CheckPath {
    const NAME: &'static str = "check-path";

    fn expected() -> String {
        "a path that begins with `/`, with or without a query".into()
    }

    fn pattern() -> String {
        "^/[^#\\s]*$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let target = text.parse::<http::uri::PathAndQuery>().ok();
        let fits = text.starts_with('/') && target.is_some_and(|target| target.as_str() == text);
        if fits { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

/// The gRPC service that a health check asks for; may be empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckService(pub String);

impl Scalar for CheckService {
    const NAME: &'static str = "check-service";

    fn expected() -> String {
        "the full name of a gRPC service such as `shop.Payments`, or `\"\"`".into()
    }

    fn pattern() -> String {
        "^[A-Za-z0-9_.]{0,200}$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.');
        if text.len() <= 200 && text.bytes().all(legal) { Ok(Self(text.to_owned())) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        self.0.clone()
    }
}

impl Eject {
    /// Fills in what follows from `after`.
    pub fn settle(&mut self, path: &str) {
        let after = self.after.value;
        let rows = [
            ("server-errors", &mut self.server_errors),
            ("gateway-errors", &mut self.gateway_errors),
            ("local-failures", &mut self.local_failures),
        ];
        for (key, row) in rows {
            row.get_or_insert_with(|| Set::derived(OrOff(Some(after)), format_args!("{path}.{key}")));
        }
        at_most(&mut self.probe, &self.longest);
    }
}

impl Health {
    /// Fills in what follows from `every`.
    pub fn settle(&mut self) {
        at_most(&mut self.timeout, &self.every);
    }
}

/// Nobody who shortens the longer time should have to shorten the default of the shorter one too.
fn at_most(time: &mut Set<Timer>, most: &Set<Timer>) {
    if time.is_default() {
        time.value = time.value.min(most.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_in_words() {
        for (text, n) in [("1 failure", 1), ("5 failures", 5), ("999999 failures", 999_999)] {
            assert_eq!(Failures::parse(text), Ok(Failures(n)));
            assert_eq!(Failures(n).write(), text);
        }
        for (text, hint) in [
            ("5", Some("5 failures")),
            ("5 errors", Some("5 failures")),
            ("5failures", Some("5 failures")),
            ("0 failures", None),
            ("05 failures", None),
            ("1000000 failures", None),
            ("failures", None),
            ("", None),
        ] {
            assert_eq!(Failures::parse(text).unwrap_err().hint.as_deref(), hint, "{text}");
        }
    }

    #[test]
    fn a_check_asks_for_a_path_or_a_service() {
        for (text, fits) in [("/", true), ("/a?b=c", true), ("a", false), ("/a b", false), ("/a#b", false), ("", false)]
        {
            assert_eq!(CheckPath::parse(text).is_ok(), fits, "{text}");
        }
        for (text, fits) in [("", true), ("a.B", true), ("a/B", false), ("a B", false)] {
            assert_eq!(CheckService::parse(text).is_ok(), fits, "{text}");
        }
    }
}
