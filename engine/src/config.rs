//! Settings that hold for a whole query, their defaults, and how intervals are written.

use arrow::compute::kernels::cast_utils::{IntervalParseConfig, IntervalUnit, parse_interval_month_day_nano_config};

use crate::error::{Error, Result};

/// A month counts 31 days where a length is needed, as in Spark, so that a watermark never comes too early.
const DAYS_PER_MONTH: i64 = 31;
const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
const NS_PER_MS: i64 = 1_000_000;

/// Settings of a query, beside source, sink, trigger and output mode. The defaults are what most queries want.
#[derive(Debug, Clone)]
pub struct QueryConfig {
    /// Into how many parallel parts a batch is cut. Default: the machine's cores.
    pub partitions: usize,
    /// How many committed batches the checkpoint keeps, beside the newest. Default 100.
    pub min_batches_to_retain: u64,
    /// How long to wait before looking for new data again when there was none, in milliseconds. Default 10.
    pub polling_delay_ms: i64,
    /// Whether checkpoint and output reach the disk before they count. Default true; false trades safety against a power
    /// cut (not against a crash of the process) for speed.
    pub durable: bool,
    /// Whether a batch without rows runs when only the watermark moved and state waits for it. Default true.
    pub no_data_batches: bool,
    /// How old the kept rows of a static table may grow before they are read again, in milliseconds. Default: they are
    /// never read again.
    pub refresh_static_tables_every_ms: Option<i64>,
    /// How many progress reports are kept. Default 100.
    pub recent_progress: usize,
    /// How long one call to a source, a sink or the checkpoint may take, in milliseconds; `None` for as long as it likes.
    /// Default 600,000 (ten minutes). The function of `foreach_batch` is not limited.
    pub call_timeout_ms: Option<u64>,
    /// How often a query without data says that it is idle, in milliseconds. Default 10,000.
    pub idle_event_interval_ms: i64,
}

impl Default for QueryConfig {
    fn default() -> Self {
        QueryConfig {
            partitions: std::thread::available_parallelism().map_or(1, usize::from),
            min_batches_to_retain: 100,
            polling_delay_ms: 10,
            durable: true,
            no_data_batches: true,
            refresh_static_tables_every_ms: None,
            recent_progress: 100,
            call_timeout_ms: Some(600_000),
            idle_event_interval_ms: 10_000,
        }
    }
}

/// The length of an interval in milliseconds, written as Spark's users write it: `10 seconds`, `1 minute 1500
/// milliseconds`, `7 days`, `INTERVAL '5' MINUTE` without the quotes. A month counts 31 days; parts below a millisecond
/// are cut off. The result may be negative: whoever needs a positive length says so.
///
/// ```
/// use tidewater::config::parse_interval_ms;
///
/// assert_eq!(parse_interval_ms("1 minute 1500 milliseconds")?, 61_500);
/// assert_eq!(parse_interval_ms("1 month")?, 31 * 24 * 60 * 60 * 1000);
/// assert!(parse_interval_ms("soon").is_err());
/// # Ok::<(), tidewater::error::Error>(())
/// ```
pub fn parse_interval_ms(text: &str) -> Result<i64> {
    let (months, days, nanos) = parse_interval(text)?;
    let days = i64::from(days) + i64::from(months) * DAYS_PER_MONTH;
    Ok(days * MS_PER_DAY + nanos.div_euclid(NS_PER_MS))
}

/// The months, days and nanoseconds of an interval.
pub(crate) fn parse_interval(text: &str) -> Result<(i32, i32, i64)> {
    let invalid = || {
        Error::invalid(format!("`{text}` is not an interval"))
            .with_hint("write a number and a unit, such as `10 seconds` or `1 hour 30 minutes`")
    };
    let trimmed = text.trim();
    let body = match trimmed.get(..8) {
        Some(word) if word.eq_ignore_ascii_case("interval") => trimmed[8..].trim(),
        _ => trimmed,
    };
    let body = body.trim_matches('\'');
    if !body.chars().any(|c| c.is_ascii_alphabetic()) {
        return Err(invalid());
    }
    let interval = parse_interval_month_day_nano_config(body, IntervalParseConfig::new(IntervalUnit::Second))
        .map_err(|e| invalid().with_source(e))?;
    Ok((interval.months, interval.days, interval.nanoseconds))
}

/// A length that must be above zero, for triggers, windows and gaps.
pub(crate) fn parse_positive_ms(what: &str, text: &str) -> Result<i64> {
    match parse_interval_ms(text)? {
        ms if ms > 0 => Ok(ms),
        _ => Err(Error::invalid(format!("{what} must be longer than zero, not `{text}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(parse_interval_ms(text).unwrap(), ms, "{text}");
        }
    }

    #[test]
    fn what_is_no_interval_is_refused_by_name() {
        for text in ["", "10", "ten seconds", "10 parsecs"] {
            let error = parse_interval_ms(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }
}
