//! Numbers of the file and their units: `800ms`, `64KiB`, a whole number within bounds, `true`.

use std::time::Duration;

use super::kind::{Kind, Reader, Scalar, Wrong};
use super::shape::{Printed, Shape};
use super::tree::{Node, Trail, What};

/// Longer than any timer; keeps sums of times far from overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// A time that may be zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A time after which something ends; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer(pub Duration);

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A number of bytes within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeWithin<const MIN: u64, const MAX: u64>(pub u64);

/// A whole number within bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count<const MIN: u64, const MAX: u64>(pub u64);

/// A share, in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

/// A number of hundredths within bounds, which may be above the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent<const MIN: u64, const MAX: u64>(pub u64);

const TIMES: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const SIZES: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

/// A time as the file writes it, for the command line.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    Span::parse(text).map(|span| span.0).map_err(|wrong| wrong.why.unwrap_or_else(Span::expected))
}

/// A whole number in decimal, without sign, underscore or leading zero.
fn whole(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if digits { text.parse().ok() } else { None }
}

/// A whole number followed by one of the units, in the smallest of them.
fn measured(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split)?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    whole(number)?.checked_mul(*factor)
}

/// A measure in the largest unit that needs no fraction.
fn written(amount: u64, units: &[(&str, u64)], zero: &str) -> String {
    let fits = units.iter().rev().find(|(_, factor)| amount.is_multiple_of(*factor));
    match fits {
        Some((unit, factor)) if amount > 0 => format!("{}{unit}", amount / factor),
        _ => format!("0{zero}"),
    }
}

impl Scalar for Span {
    const NAME: &'static str = "duration";

    fn expected() -> String {
        "a duration with a unit such as `800ms` or `5s`".into()
    }

    fn pattern() -> String {
        "^(0|[1-9][0-9]*)(ms|s|m|h|d)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match measured(text, &TIMES).map(Duration::from_millis) {
            Some(time) if time <= LONGEST => Ok(Self(time)),
            Some(_) => Err(Wrong::because("at most `366d`")),
            None => Err(nearest_time(text)),
        }
    }

    fn write(&self) -> String {
        let millis = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        if millis == 60_000 {
            // `60s` is how every manual says it.
            return "60s".into();
        }
        written(millis, &TIMES, "s")
    }
}

/// What a time without a unit, with a fraction or with a longer unit was meant to be.
fn nearest_time(text: &str) -> Wrong {
    if whole(text).is_some() {
        return Wrong::meant(format!("{text}s"));
    }
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(split).unwrap_or((text, ""));
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "ms" | "msec" | "milliseconds" => 1.0,
        "" | "s" | "sec" | "secs" | "second" | "seconds" => 1000.0,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000.0,
        "h" | "hour" | "hours" => 3_600_000.0,
        "d" | "day" | "days" => 86_400_000.0,
        _ => return Wrong::default(),
    };
    match number.parse::<f64>() {
        Ok(number) if (0.0..1e9).contains(&number) && (number * unit).fract() == 0.0 => {
            Wrong::meant(Span(Duration::from_millis((number * unit) as u64)).write())
        }
        _ => Wrong::default(),
    }
}

impl Scalar for Timer {
    const NAME: &'static str = "timer";

    fn expected() -> String {
        "a duration above zero with a unit such as `800ms` or `5s`".into()
    }

    fn pattern() -> String {
        "^[1-9][0-9]*(ms|s|m|h|d)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match Span::parse(text)? {
            Span(time) if time.is_zero() => Err(Wrong::default()),
            Span(time) => Ok(Self(time)),
        }
    }

    fn write(&self) -> String {
        Span(self.0).write()
    }
}

impl Scalar for Size {
    const NAME: &'static str = "size";

    fn expected() -> String {
        "a size with a unit such as `512B`, `64KiB` or `10MiB`".into()
    }

    fn pattern() -> String {
        "^(0|[1-9][0-9]*)(B|KiB|MiB|GiB)$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        measured(text, &SIZES).map(Self).ok_or_else(|| {
            let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            let (number, unit) = text.split_at_checked(split).unwrap_or((text, ""));
            let unit = match unit.trim().to_ascii_lowercase().as_str() {
                "" | "b" | "byte" | "bytes" => "B",
                "k" | "kb" | "kib" => "KiB",
                "m" | "mb" | "mib" => "MiB",
                "g" | "gb" | "gib" => "GiB",
                _ => return Wrong::default(),
            };
            whole(number).map_or_else(Wrong::default, |number| Wrong::meant(format!("{number}{unit}")))
        })
    }

    fn write(&self) -> String {
        written(self.0, &SIZES, "B")
    }
}

impl<const MIN: u64, const MAX: u64> Scalar for SizeWithin<MIN, MAX> {
    const NAME: &'static str = "size-within";

    fn expected() -> String {
        format!("a size from `{}` to `{}`", Size(MIN).write(), Size(MAX).write())
    }

    fn pattern() -> String {
        Size::pattern()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        match Size::parse(text)? {
            Size(bytes) if (MIN..=MAX).contains(&bytes) => Ok(Self(bytes)),
            Size(_) => Err(Wrong::default()),
        }
    }

    fn write(&self) -> String {
        Size(self.0).write()
    }
}

impl<const MIN: u64, const MAX: u64> Scalar for Count<MIN, MAX> {
    const NAME: &'static str = "number";

    fn expected() -> String {
        format!("a whole number from {MIN} to {MAX}")
    }

    fn pattern() -> String {
        "^(0|[1-9][0-9]*)$".into()
    }

    fn range() -> Option<(u64, u64)> {
        Some((MIN, MAX))
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        whole(text).filter(|number| (MIN..=MAX).contains(number)).map(Self).ok_or_else(Wrong::default)
    }

    fn write(&self) -> String {
        self.0.to_string()
    }
}

/// A percentage in parts per million.
pub(super) fn percentage(text: &str) -> Result<u32, Wrong> {
    let Some(number) = text.strip_suffix('%') else {
        return Err(whole(text).map_or_else(Wrong::default, |number| Wrong::meant(format!("{number}%"))));
    };
    let (percent, rest) = number.split_once('.').unwrap_or((number, "0"));
    let legal = (1..=4).contains(&rest.len()) && rest.bytes().all(|b| b.is_ascii_digit());
    let parts = format!("{rest:0<4}").parse::<u64>().ok().filter(|_| legal);
    let parts = whole(percent).zip(parts).and_then(|(percent, rest)| percent.checked_mul(10_000)?.checked_add(rest));
    parts.and_then(|parts| u32::try_from(parts).ok()).ok_or_else(Wrong::default)
}

fn as_percentage(parts: u32) -> String {
    let (percent, rest) = (parts / 10_000, parts % 10_000);
    let rest = format!(".{rest:04}");
    let rest = rest.trim_end_matches('0').trim_end_matches('.');
    format!("{percent}{rest}%")
}

impl Scalar for Share {
    const NAME: &'static str = "share";

    fn expected() -> String {
        "a share such as `20%` or `0.5%`, at most `100%`".into()
    }

    fn pattern() -> String {
        r"^(0|[1-9][0-9]?|100)(\.[0-9]{1,4})?%$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let parts = percentage(text)?;
        if parts <= 1_000_000 { Ok(Self(parts)) } else { Err(Wrong::default()) }
    }

    fn write(&self) -> String {
        as_percentage(self.0)
    }
}

impl<const MIN: u64, const MAX: u64> Scalar for Percent<MIN, MAX> {
    const NAME: &'static str = "percent";

    fn expected() -> String {
        format!("a whole percentage from `{MIN}%` to `{MAX}%`")
    }

    fn pattern() -> String {
        "^(0|[1-9][0-9]*)%$".into()
    }

    fn parse(text: &str) -> Result<Self, Wrong> {
        let within = |number: u64| (MIN..=MAX).contains(&number);
        match text.strip_suffix('%') {
            Some(number) => whole(number).filter(|number| within(*number)).map(Self).ok_or_else(Wrong::default),
            None => Err(whole(text)
                .filter(|number| within(*number))
                .map_or_else(Wrong::default, |number| Wrong::meant(format!("{number}%")))),
        }
    }

    fn write(&self) -> String {
        format!("{}%", self.0)
    }
}

impl Kind for bool {
    fn shape() -> Shape {
        Shape::Words(&["true", "false"])
    }

    fn read(node: &Node<'_>, trail: &Trail<'_>, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.what {
            // YAML 1.1 had eleven more ways to say it; they are words here, not truths.
            What::Text(text) if matches!(&*text.to_ascii_lowercase(), "yes" | "on" | "y") => {
                reader.problems.error(
                    trail,
                    node.at,
                    format!("expected `true` or `false`, found `{text}`"),
                    Some("true".into()),
                );
                None
            }
            What::Text(text) if matches!(&*text.to_ascii_lowercase(), "no" | "off" | "n") => {
                reader.problems.error(
                    trail,
                    node.at,
                    format!("expected `true` or `false`, found `{text}`"),
                    Some("false".into()),
                );
                None
            }
            _ => reader.word(node, trail, &["true", "false"]).map(|at| at == 0),
        }
    }

    fn print(&self) -> Printed {
        Printed::Scalar(self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        for (text, millis) in
            [("800ms", 800), ("5s", 5000), ("0s", 0), ("2m", 120_000), ("1h", 3_600_000), ("1d", 86_400_000)]
        {
            assert_eq!(Span::parse(text), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for (text, hint) in [
            ("5", Some("5s")),
            ("1.5s", Some("1500ms")),
            ("5 s", Some("5s")),
            ("5sec", Some("5s")),
            ("90min", Some("90m")),
            ("1m30s", None),
            ("-5s", None),
            ("05s", Some("5s")),
            ("", None),
            ("s", None),
            ("fast", None),
            ("999999999999999999999s", None),
            ("５s", None),
        ] {
            assert_eq!(Span::parse(text).unwrap_err().hint.as_deref(), hint, "{text}");
        }
        assert!(Span::parse("367d").is_err());
        assert!(Timer::parse("0s").is_err());
    }

    #[test]
    fn a_size_needs_its_unit() {
        for (text, bytes) in [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("10MiB", 10 << 20), ("3GiB", 3 << 30)] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        for (text, hint) in [("64", Some("64B")), ("64K", Some("64KiB")), ("64kb", Some("64KiB")), ("1TiB", None)] {
            assert_eq!(Size::parse(text).unwrap_err().hint.as_deref(), hint, "{text}");
        }
    }

    #[test]
    fn what_is_written_reads_the_same() {
        for text in ["800ms", "25s", "60s", "90s", "2m", "1h", "0s", "1001ms", "2d"] {
            assert_eq!(Span::parse(text).unwrap().write(), text);
        }
        for text in ["512B", "64KiB", "1025B", "0B", "1GiB"] {
            assert_eq!(Size::parse(text).unwrap().write(), text);
        }
    }

    #[test]
    fn a_share_is_a_percentage() {
        for (text, parts) in [("0%", 0), ("20%", 200_000), ("0.5%", 5000), ("99.9999%", 999_999), ("100%", 1_000_000)] {
            assert_eq!(Share::parse(text), Ok(Share(parts)), "{text}");
            assert_eq!(Share(parts).write(), text);
        }
        assert_eq!(Share::parse("20").unwrap_err().hint.as_deref(), Some("20%"));
        for text in ["101%", "100.0001%", "-1%", "1.%", ".5%", "1.00001%", "1.+5%", "%", "", "01%", "1e1%"] {
            assert!(Share::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_percentage_may_be_above_the_whole() {
        type Percentage = Percent<100, 1000>;
        for (text, hundredths) in [("100%", 100), ("125%", 125), ("1000%", 1000)] {
            assert_eq!(Percentage::parse(text), Ok(Percent(hundredths)), "{text}");
            assert_eq!(Percent::<100, 1000>(hundredths).write(), text);
        }
        assert_eq!(Percentage::parse("125").unwrap_err().hint.as_deref(), Some("125%"));
        for text in ["99%", "1001%", "125.5%", "0125%", "%", "", "1.25"] {
            assert!(Percentage::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_count_keeps_its_bounds() {
        type Small = Count<1, 10>;
        assert_eq!(Small::parse("10"), Ok(Count(10)));
        for text in ["0", "11", "-1", "1.0", "1_0", "0x1", "01", "", "99999999999999999999"] {
            assert!(Small::parse(text).is_err(), "{text}");
        }
    }
}
