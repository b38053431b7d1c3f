//! Lengths of time, as users give them.
//!
//! Every setting that is a length of time takes an [`Interval`]: a [`Duration`], or text as Spark's users write it.
//!
//! ```
//! use std::time::Duration;
//! use tidewater::interval::Interval;
//!
//! assert_eq!(Interval::from("1 minute 1500 milliseconds"), Interval::from(Duration::from_millis(61_500)));
//! assert!("soon".parse::<Interval>().is_err());
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use arrow::compute::kernels::cast_utils::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config};

use crate::error::{Error, Result};

/// A month counts 31 days where a length is needed, as in Spark, so that a watermark never comes too early.
const DAYS_PER_MONTH: i128 = 31;
const NS_PER_DAY: i128 = 24 * 60 * 60 * 1_000_000_000;
const NS_PER_MS: i128 = 1_000_000;
const NS_PER_US: i128 = 1_000;

/// A length of time: a `Duration`, or text such as `10 seconds`, `1 minute 1500 milliseconds`, `7 days`, `interval 5 minutes`.
///
/// Text that is no interval is an error where the interval is used, at the latest when the query starts, and the error says
/// what the interval was for. [`FromStr`] reports it at once. In text, a month counts 31 days; where a fixed length is needed,
/// as for windows, it is refused.
#[derive(Debug, Clone)]
pub struct Interval {
    /// As it was given.
    text: String,
    /// None for text that is no interval.
    parts: Option<Parts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Parts {
    months: i32,
    days: i32,
    nanos: i128,
}

impl Interval {
    /// The length in milliseconds; parts below are cut off. It may be negative. `what` is what it is for, for the error: "the
    /// delay of the watermark".
    ///
    /// # Errors
    ///
    /// If the text is no interval, or one of more than 292 million years.
    pub fn to_ms(&self, what: &str) -> Result<i64> {
        let Parts { months, days, nanos } = self.parts(what)?;
        let days = i128::from(days) + i128::from(months) * DAYS_PER_MONTH;
        let ms = (days * NS_PER_DAY + nanos).div_euclid(NS_PER_MS);
        i64::try_from(ms).map_err(|_| self.too_long(what))
    }

    /// The length in milliseconds, zero or more.
    ///
    /// # Errors
    ///
    /// Those of [`to_ms`](Self::to_ms); and if it is negative.
    pub fn non_negative_ms(&self, what: &str) -> Result<i64> {
        match self.to_ms(what)? {
            ..0 => Err(Error::invalid(format!("{what} must not be negative, as `{self}` is"))
                .with_hint("give a length such as `10 seconds`")),
            ms => Ok(ms),
        }
    }

    /// The length in milliseconds, one or more.
    ///
    /// # Errors
    ///
    /// Those of [`to_ms`](Self::to_ms); and if it is negative or shorter than a millisecond.
    pub fn positive_ms(&self, what: &str) -> Result<i64> {
        match self.to_ms(what)? {
            ms if ms > 0 => Ok(ms),
            _ => Err(Error::invalid(format!("{what} must be longer than zero, not `{self}`"))
                .with_hint("give a length of at least one millisecond, such as `10 seconds`")),
        }
    }

    /// The length as a `Duration` of one millisecond or more.
    ///
    /// # Errors
    ///
    /// Those of [`positive_ms`](Self::positive_ms).
    pub fn to_duration(&self, what: &str) -> Result<Duration> {
        Ok(Duration::from_millis(self.positive_ms(what)?.unsigned_abs()))
    }

    /// The length in microseconds, where it must be the same at all times.
    pub(crate) fn fixed_us(&self, what: &str) -> Result<i64> {
        let parts = self.parts(what)?;
        fixed_us(what, parts, &self.text)
    }

    fn parts(&self, what: &str) -> Result<Parts> {
        self.parts.ok_or_else(|| {
            Error::invalid(format!("{what} is `{self}`, which is not an interval"))
                .with_hint("write a number and a unit, such as `10 seconds` or `1 hour 30 minutes`")
        })
    }

    fn too_long(&self, what: &str) -> Error {
        Error::invalid(format!("{what} is too long: `{self}`"))
    }
}

/// The microseconds of an interval of DataFusion, where they must be the same at all times.
pub(crate) fn fixed_us_of(what: &str, months: i32, days: i32, nanos: i64) -> Result<i64> {
    let text = format!("{months} months {days} days {nanos} nanoseconds");
    fixed_us(what, Parts { months, days, nanos: nanos.into() }, &text)
}

fn fixed_us(what: &str, Parts { months, days, nanos }: Parts, text: &str) -> Result<i64> {
    if months != 0 {
        return Err(Error::invalid(format!("{what} must have a fixed length, and a month has none: `{text}`"))
            .with_hint("count days instead, such as `30 days`"));
    }
    let us = (i128::from(days) * NS_PER_DAY + nanos).div_euclid(NS_PER_US);
    i64::try_from(us).map_err(|_| Error::invalid(format!("{what} is too long: `{text}`")))
}

/// What text says; `None` if it is no interval.
fn parse(text: &str) -> Option<Parts> {
    let trimmed = text.trim();
    let body = match trimmed.get(..8) {
        Some(word) if word.eq_ignore_ascii_case("interval") => trimmed[8..].trim(),
        _ => trimmed,
    };
    let body = body.trim_matches('\'');
    // Arrow takes a bare number for seconds; whoever meant milliseconds would not notice.
    if !body.chars().any(|c| c.is_ascii_alphabetic()) {
        return None;
    }
    let interval = parse_interval_month_day_nano_config(body, IntervalParseConfig::new(IntervalUnit::Second)).ok()?;
    Some(Parts { months: interval.months, days: interval.days, nanos: interval.nanoseconds.into() })
}

impl From<&str> for Interval {
    fn from(text: &str) -> Self {
        Interval { text: text.to_owned(), parts: parse(text) }
    }
}

impl From<String> for Interval {
    fn from(text: String) -> Self {
        Interval { parts: parse(&text), text }
    }
}

impl From<&String> for Interval {
    fn from(text: &String) -> Self {
        text.as_str().into()
    }
}

impl From<Duration> for Interval {
    fn from(duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        let units = [(1_000_000_000, "seconds"), (1_000_000, "milliseconds"), (1_000, "microseconds")];
        let exact = units.into_iter().find(|(unit, _)| nanos.is_multiple_of(*unit));
        let (unit, name) = exact.unwrap_or((1, "nanoseconds"));
        // No `Duration` has more nanoseconds than an `i128` holds.
        let parts = Parts { months: 0, days: 0, nanos: i128::try_from(nanos).unwrap_or(i128::MAX) };
        Interval { text: format!("{} {name}", nanos / unit), parts: Some(parts) }
    }
}

impl FromStr for Interval {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let interval = Interval::from(text);
        interval.parts("the text").map(|_| interval)
    }
}

impl PartialEq for Interval {
    /// Two are equal if they have the same months, days and nanoseconds, however they are written.
    fn eq(&self, other: &Self) -> bool {
        self.parts == other.parts && (self.parts.is_some() || self.text == other.text)
    }
}

impl Eq for Interval {}

/// As it was given; a `Duration` in the largest unit that is exact.
impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

    #[test]
    fn intervals_as_spark_writes_them() {
        for (text, ms) in [
            ("10 seconds", 10_000),
            ("0 seconds", 0),
            ("-10 seconds", -10_000),
            ("interval 5 minutes", 300_000),
            ("INTERVAL '5 minutes'", 300_000),
            ("1 year -13 months", -31 * MS_PER_DAY),
            ("1 month -40 days", -9 * MS_PER_DAY),
            ("2 hours", 7_200_000),
            ("1 week", 7 * MS_PER_DAY),
            ("100 milliseconds", 100),
        ] {
            assert_eq!(Interval::from(text).to_ms("it").unwrap(), ms, "{text}");
        }
    }

    #[test]
    fn what_is_no_interval_is_refused_with_what_it_was_for() {
        for text in ["", "10", "ten seconds", "10 parsecs"] {
            let error = Interval::from(text).to_ms("the delay of the watermark").unwrap_err();
            assert_eq!(error.message(), format!("the delay of the watermark is `{text}`, which is not an interval"));
            assert!(text.parse::<Interval>().is_err());
        }
    }

    #[test]
    fn durations_are_spelled_so_that_they_are_read_back() {
        for (duration, text) in [
            (Duration::from_secs(600), "600 seconds"),
            (Duration::from_millis(1_500), "1500 milliseconds"),
            (Duration::from_micros(7), "7 microseconds"),
            (Duration::from_nanos(1_001), "1001 nanoseconds"),
            (Duration::ZERO, "0 seconds"),
        ] {
            let interval = Interval::from(duration);
            assert_eq!(interval.to_string(), text);
            assert_eq!(interval, Interval::from(text));
        }
    }

    #[test]
    fn lengths_out_of_range_are_named() {
        assert!(Interval::from("-1 seconds").non_negative_ms("it").unwrap_err().message().contains("`-1 seconds`"));
        assert_eq!(Interval::from("0 seconds").non_negative_ms("it").unwrap(), 0);
        assert!(Interval::from(Duration::from_micros(999)).positive_ms("it").is_err());
        assert!(Interval::from(Duration::MAX).to_ms("it").unwrap_err().message().contains("too long"));
        assert!(Interval::from("1 month").fixed_us("it").unwrap_err().message().contains("fixed length"));
        assert_eq!(Interval::from("1 day 1 second").fixed_us("it").unwrap(), 86_401_000_000);
    }
}
