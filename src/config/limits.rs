//! What may go on at one time and how often: the limits of doors, routes and peers, and what a peer's breaker goes by.

use std::time::Duration;

use super::collect::{OneOrMore, OrNone, OrOff, Switch};
use super::kind::{Scalar, Set, Wrong};
use super::section::section;
use super::units::{Count, Percent, Share, Timer};
use super::values::field_name;

section! {
    /// What goes to a peer at one time, and when it is no longer asked. What is over a limit is answered 503 at once.
    Breaker {
        /// Open connections, or `none`.
        connections "connections": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Connections being made.
        connecting "connecting": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Requests in flight, until the end of their answer.
        in_flight "in-flight": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Requests waiting for a connection; one that makes its own does not wait.
        pending "pending": Set<OrNone<Count<0, 1_000_000>>> = Is("none");
        /// Retries and hedges in flight.
        retries "retries": Set<OrNone<Count<0, 1_000_000>>> = Is("none");
        /// The same for each of its endpoints.
        endpoint "endpoint": Set<EndpointLimits> = Is("{}");
        /// The share of the last ten seconds' requests that must fail for the peer not to be asked, or `off`.
        failures "failures": Set<OrOff<Share>> = Is("off");
        /// Slow answers that have the same effect.
        slow "slow": Option<Set<Slow>> = Unset("2s");
        /// Requests in ten seconds below which nothing is judged.
        volume "volume": Set<Count<1, 1_000_000>> = Is("20");
        /// How long the peer is not asked, before one request tries.
        open_for "open-for": Set<Timer> = Is("5s");
        /// A limit of the requests in flight that follows the peer's latency, `on` or `off`.
        adaptive "adaptive": Set<Switch<Adaptive>> = Is("off");
        /// Whether part of the requests is refused here while the peer refuses too many, `on` or `off`.
        admission "admission": Set<Switch<Admission>> = Is("off");
    }
}

section! {
    /// What goes to one endpoint at one time.
    EndpointLimits {
        /// Open connections, or `none`.
        connections "connections": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Connections being made.
        connecting "connecting": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Requests in flight; another endpoint is tried where one has room.
        in_flight "in-flight": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// Requests waiting for a connection.
        pending "pending": Set<OrNone<Count<0, 1_000_000>>> = Is("none");
    }
}

section! {
    /// When slow answers open a breaker.
    Slow = "from" {
        /// What is slow, until the answer begins.
        from "from": Option<Set<Timer>> = Required("2s");
        /// The share of the last ten seconds' requests.
        share "share": Set<Share> = Is("50%");
    }
}

section! {
    /// A limit of requests in flight that falls while answers are slower than at their best, and rises else.
    Adaptive {
        /// It never falls below this.
        least "least": Set<Count<1, 1_000_000>> = Is("4");
        /// It never rises above this.
        most "most": Set<Count<1, 1_000_000>> = Is("1000");
        /// Where it begins.
        start "start": Set<Count<1, 1_000_000>> = Is("20");
        /// How slow answers may be, against those at their best.
        tolerance "tolerance": Set<Percent<101, 10_000>> = Is("150%");
    }
}

section! {
    /// When requests are refused here because their peer refuses too many.
    Admission {
        /// Requests may be so many times those accepted in thirty seconds.
        accepts "accepts": Set<Percent<100, 10_000>> = Is("200%");
        /// The largest share that is refused, so that a recovery is seen.
        most "most": Set<Share> = Is("80%");
        /// Requests in thirty seconds below which none is refused.
        volume "volume": Set<Count<1, 1_000_000>> = Is("20");
    }
}

section! {
    /// What all requests of a route may take together.
    RouteLimits {
        /// Requests in flight, or `none`.
        in_flight "in-flight": Set<OrNone<Count<1, 1_000_000>>> = Is("none");
        /// How often requests may come; all of a list must allow it.
        rate "rate": Option<Set<OneOrMore<Rate>>> = Unset("{ per: header x-user, limit: 10/s }");
        /// A limit in flight that follows the latency, `on` or `off`.
        adaptive "adaptive": Set<Switch<Adaptive>> = Is("off");
    }
}

section! {
    /// How often requests may come. What is over it is answered 429 with `Retry-After`; what passes is told what is left
    /// (`RateLimit`), where the rate has a `per` or is a route's.
    Rate = "limit" {
        /// Requests per second, minute or hour on average.
        limit "limit": Option<Set<Pace>> = Required("500/s");
        /// Requests at once; by default as many as `limit` names.
        burst "burst": Option<Set<Count<1, 1_000_000>>> = Unset("1000");
        /// What has a rate each: `address`, `header NAME` or `identity`.
        per "per": Option<Set<RateKey>> = Unset("header x-user");
        /// How many are remembered; others share one rate.
        keys "keys": Set<Count<1, 1_000_000>> = Is("10000");
    }
}

/// So many in a unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How many.
    pub count: u32,
    /// In what time.
    pub period: Duration,
}

/// What each has a rate of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RateKey {
    /// The caller's address.
    Address,
    /// The value of this field.
    Header(http::HeaderName),
    /// Who the caller has proven to be.
    Identity,
}

const PERIODS: [(&str, u64); 3] = [("s", 1), ("m", 60), ("h", 3600)];

impl Scalar for Pace {
    const NAME: &'static str = "pace";

    fn expected() -> String {
        "a rate such as `500/s`, `10/m` or `1000/h`, at most 1000000".into()
    }

    fn pattern() -> String {
        "^[1-9][0-9]*/(s|m|h)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let Some((count, unit)) = text.split_once('/') else {
            let number = text.parse::<u32>().is_ok_and(|count| count > 0);
            return Err(if number { Wrong::meant(format!("{text}/s")) } else { Wrong::default() });
        };
        let whole = count.bytes().all(|b| b.is_ascii_digit()) && !count.starts_with('0');
        let count = count.parse::<u32>().ok().filter(|count| whole && (1..=1_000_000).contains(count));
        let period = PERIODS.iter().find(|(name, _)| *name == unit);
        match (count, period) {
            (Some(count), Some((_, seconds))) => Ok(Self { count, period: Duration::from_secs(*seconds) }),
            (Some(count), None) => Err(match unit {
                "sec" | "second" => Wrong::meant(format!("{count}/s")),
                "min" | "minute" => Wrong::meant(format!("{count}/m")),
                "hour" => Wrong::meant(format!("{count}/h")),
                _ => Wrong::default(),
            }),
            (None, _) => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        let unit = PERIODS.iter().find(|(_, seconds)| *seconds == self.period.as_secs()).map_or("s", |(name, _)| name);
        format!("{}/{unit}", self.count)
    }
}

impl Scalar for RateKey {
    const NAME: &'static str = "rate-key";

    fn expected() -> String {
        "`address`, `identity`, or `header` and a field's name such as `header x-user`".into()
    }

    fn pattern() -> String {
        "^(address|identity|header +[A-Za-z0-9!#$%&'*+.^_`|~-]+)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match text {
            "address" => return Ok(Self::Address),
            "identity" => return Ok(Self::Identity),
            _ => {}
        }
        let name = text.strip_prefix("header ").map(str::trim_start).and_then(field_name);
        name.map(Self::Header).ok_or_else(|| match text {
            "ip" | "client" | "source" => Wrong::meant("address"),
            "id" | "spiffe" => Wrong::meant("identity"),
            _ => field_name(text).map_or_else(Wrong::default, |name| Wrong::meant(format!("header {name}"))),
        })
    }

    fn write(&self) -> String {
        match self {
            Self::Address => "address".into(),
            Self::Identity => "identity".into(),
            Self::Header(name) => format!("header {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_its_unit() {
        for (text, count, seconds) in [("500/s", 500, 1), ("10/m", 10, 60), ("1000000/h", 1_000_000, 3600)] {
            let pace = Pace::parse(text).unwrap();
            assert_eq!((pace.count, pace.period.as_secs(), pace.write().as_str()), (count, seconds, text));
        }
        for (text, hint) in [("500", Some("500/s")), ("5/min", Some("5/m")), ("5/second", Some("5/s"))] {
            assert_eq!(Pace::parse(text).unwrap_err().hint.as_deref(), hint, "{text}");
        }
        for text in ["", "/s", "0/s", "01/s", "-1/s", "+1/s", "1.5/s", "1000001/s", "5/d", "5 /s", "5/s/s"] {
            assert_eq!(Pace::parse(text), Err(Wrong::default()), "{text}");
        }
    }

    #[test]
    fn a_rate_has_one_of_three_keys() {
        assert_eq!(RateKey::parse("address"), Ok(RateKey::Address));
        assert_eq!(RateKey::parse("identity").map(|key| key.write()), Ok("identity".into()));
        assert_eq!(RateKey::parse("spiffe").unwrap_err().hint.as_deref(), Some("identity"));
        for (text, written) in [("header x-user", "header x-user"), ("header  X-User", "header x-user")] {
            assert_eq!(RateKey::parse(text).unwrap().write(), written);
        }
        assert_eq!(RateKey::parse("x-user").unwrap_err().hint.as_deref(), Some("header x-user"));
        assert_eq!(RateKey::parse("ip").unwrap_err().hint.as_deref(), Some("address"));
        for text in ["", "header ", "header", "header a b"] {
            assert!(RateKey::parse(text).is_err(), "{text}");
        }
    }
}
