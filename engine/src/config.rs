//! Settings that hold for a whole query, and their defaults.

use crate::error::{Error, Result};
use crate::interval::Interval;

/// Settings of a query, beside source, sink, trigger and output mode. The defaults are what most queries want.
///
/// Each has a setter here, and those that are often changed have one of the same name at
/// [`StreamWriter`](crate::query::StreamWriter), too. For files and command lines, [`set`](Self::set) takes names and text:
///
/// | name | value | default |
/// |---|---|---|
/// | `partitions` | a whole number, one or more | the machine's cores |
/// | `minBatchesToRetain` | a whole number of batches | 100 |
/// | `pollingDelay` | an interval | `10 milliseconds` |
/// | `durable` | `true` or `false` | `true` |
/// | `noDataBatches` | `true` or `false` | `true` |
/// | `refreshStaticTablesEvery` | an interval, or `never` | `never` |
/// | `recentProgress` | a whole number of reports | 100 |
/// | `callTimeout` | an interval, or `none` | `10 minutes` |
/// | `idleEventInterval` | an interval | `10 seconds` |
///
/// ```
/// use std::time::Duration;
/// use tidewater::config::QueryConfig;
///
/// let config = QueryConfig::new().partitions(4).polling_delay(Duration::from_millis(50));
/// let config = config.set("callTimeout", "30 seconds")?;
/// let error = config.set("callTimeOut2", "30 seconds").unwrap_err();
/// assert!(error.message().contains("did you mean `callTimeout`"));
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct QueryConfig {
    partitions: usize,
    min_batches_to_retain: u64,
    polling_delay: Interval,
    durable: bool,
    no_data_batches: bool,
    refresh_static_tables_every: Option<Interval>,
    recent_progress: usize,
    call_timeout: Option<Interval>,
    idle_event_interval: Interval,
}

const NAMES: &[&str] = &[
    "partitions",
    "minBatchesToRetain",
    "pollingDelay",
    "durable",
    "noDataBatches",
    "refreshStaticTablesEvery",
    "recentProgress",
    "callTimeout",
    "idleEventInterval",
];

impl Default for QueryConfig {
    fn default() -> Self {
        QueryConfig {
            partitions: std::thread::available_parallelism().map_or(1, usize::from),
            min_batches_to_retain: 100,
            polling_delay: "10 milliseconds".into(),
            durable: true,
            no_data_batches: true,
            refresh_static_tables_every: None,
            recent_progress: 100,
            call_timeout: Some("10 minutes".into()),
            idle_event_interval: "10 seconds".into(),
        }
    }
}

impl QueryConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Into how many parallel parts a batch is cut, at least one. Default: the machine's cores. May change at every restart.
    #[must_use]
    pub fn partitions(mut self, partitions: usize) -> Self {
        self.partitions = partitions.max(1);
        self
    }

    /// How many committed batches the checkpoint keeps, beside the newest. Default 100.
    #[must_use]
    pub fn min_batches_to_retain(mut self, batches: u64) -> Self {
        self.min_batches_to_retain = batches;
        self
    }

    /// How long to wait before looking for new data again when there was none. Default 10 milliseconds; sources that cannot
    /// say when there is news are asked less often the longer nothing comes.
    #[must_use]
    pub fn polling_delay(mut self, delay: impl Into<Interval>) -> Self {
        self.polling_delay = delay.into();
        self
    }

    /// Whether checkpoint and output reach the disk before they count. Default true; false trades safety against a power cut
    /// (not against a crash of the process) for speed.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> Self {
        self.durable = durable;
        self
    }

    /// Whether a batch without rows runs when only the watermark moved and state waits for it. Default true.
    #[must_use]
    pub fn no_data_batches(mut self, allowed: bool) -> Self {
        self.no_data_batches = allowed;
        self
    }

    /// Reads static tables of the query again once what is kept of them is older than this. Default: never.
    #[must_use]
    pub fn refresh_static_tables_every(mut self, interval: impl Into<Interval>) -> Self {
        self.refresh_static_tables_every = Some(interval.into());
        self
    }

    /// How many progress reports [`recent_progress`](crate::query::StreamingQuery::recent_progress) gives. Default 100.
    #[must_use]
    pub fn recent_progress(mut self, reports: usize) -> Self {
        self.recent_progress = reports;
        self
    }

    /// How long one call to a source, a sink or the checkpoint may take before the query fails. Default 10 minutes. The function
    /// of `foreach_batch` is not limited.
    #[must_use]
    pub fn call_timeout(mut self, timeout: impl Into<Interval>) -> Self {
        self.call_timeout = Some(timeout.into());
        self
    }

    /// Lets calls to sources, sinks and the checkpoint take as long as they like.
    #[must_use]
    pub fn no_call_timeout(mut self) -> Self {
        self.call_timeout = None;
        self
    }

    /// How often a query without data sends [`QueryEvent::Idle`](crate::progress::QueryEvent::Idle). Default 10 seconds.
    #[must_use]
    pub fn idle_event_interval(mut self, interval: impl Into<Interval>) -> Self {
        self.idle_event_interval = interval.into();
        self
    }

    /// Sets one setting by its name in the table above, in any case.
    ///
    /// # Errors
    ///
    /// If there is no such setting: the error names similar ones. If the text is not a value of it.
    pub fn set(mut self, name: &str, value: &str) -> Result<Self> {
        let known = NAMES.iter().find(|known| known.eq_ignore_ascii_case(name)).copied();
        let wrong =
            |wanted: &str| Error::invalid(format!("the setting `{name}` of a query is `{value}`, not {wanted}"));
        let value = value.trim();
        let is_true = || match value {
            _ if value.eq_ignore_ascii_case("true") => Ok(true),
            _ if value.eq_ignore_ascii_case("false") => Ok(false),
            _ => Err(wrong("`true` or `false`")),
        };
        let interval = || value.parse::<Interval>().map_err(|_| wrong("an interval such as `10 seconds`"));
        let unless = |none: &str| match value.eq_ignore_ascii_case(none) {
            true => Ok(None),
            false => interval().map(Some),
        };
        match known {
            Some("partitions") => {
                let some = value.parse().ok().filter(|partitions: &usize| *partitions > 0);
                self.partitions = some.ok_or_else(|| wrong("a whole number of one or more"))?;
            }
            Some("minBatchesToRetain") => {
                self.min_batches_to_retain = value.parse().map_err(|_| wrong("a whole number"))?;
            }
            Some("pollingDelay") => self.polling_delay = interval()?,
            Some("durable") => self.durable = is_true()?,
            Some("noDataBatches") => self.no_data_batches = is_true()?,
            Some("refreshStaticTablesEvery") => self.refresh_static_tables_every = unless("never")?,
            Some("recentProgress") => self.recent_progress = value.parse().map_err(|_| wrong("a whole number"))?,
            Some("callTimeout") => self.call_timeout = unless("none")?,
            Some("idleEventInterval") => self.idle_event_interval = interval()?,
            _ => return Err(Error::unknown("setting", name, "a query", NAMES)),
        }
        Ok(self)
    }

    /// The defaults, changed by these names and values.
    ///
    /// # Errors
    ///
    /// Those of [`set`](Self::set).
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        options.into_iter().try_fold(Self::new(), |config, (name, value)| config.set(&name, &value))
    }

    /// The settings as a query runs with them.
    pub(crate) fn checked(&self) -> Result<Settings> {
        let timeout_ms = self.call_timeout.as_ref().map(|timeout| timeout.positive_ms("the time limit of calls"));
        let refresh = self.refresh_static_tables_every.as_ref();
        let refresh_ms = refresh.map(|interval| interval.positive_ms("the refresh interval of static tables"));
        Ok(Settings {
            partitions: self.partitions,
            min_batches_to_retain: self.min_batches_to_retain,
            polling_delay_ms: self.polling_delay.non_negative_ms("the polling delay")?,
            durable: self.durable,
            no_data_batches: self.no_data_batches,
            refresh_static_tables_every_ms: refresh_ms.transpose()?,
            recent_progress: self.recent_progress,
            call_timeout_ms: timeout_ms.transpose()?.map(i64::unsigned_abs),
            idle_event_interval_ms: self.idle_event_interval.positive_ms("the interval of idle events")?,
        })
    }
}

/// The settings of a [`QueryConfig`], checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) partitions: usize,
    pub(crate) min_batches_to_retain: u64,
    pub(crate) polling_delay_ms: i64,
    pub(crate) durable: bool,
    pub(crate) no_data_batches: bool,
    pub(crate) refresh_static_tables_every_ms: Option<i64>,
    pub(crate) recent_progress: usize,
    pub(crate) call_timeout_ms: Option<u64>,
    pub(crate) idle_event_interval_ms: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_has_a_name() {
        for name in NAMES {
            let value = match *name {
                "durable" | "noDataBatches" => "FALSE",
                "partitions" | "minBatchesToRetain" | "recentProgress" => "7",
                _ => "7 seconds",
            };
            let config = QueryConfig::new().set(&name.to_ascii_lowercase(), value).unwrap();
            assert_ne!(format!("{config:?}"), format!("{:?}", QueryConfig::new()), "{name} changes something");
            config.checked().unwrap();
            let error = QueryConfig::new().set(name, "soon").unwrap_err();
            assert!(error.message().contains(name) && error.message().contains("`soon`"), "{error}");
        }
        let lengths = [("callTimeout".to_owned(), "None".to_owned())];
        assert_eq!(QueryConfig::from_options(lengths).unwrap().checked().unwrap().call_timeout_ms, None);
    }

    #[test]
    fn what_makes_no_sense_is_refused_when_the_query_starts() {
        for (config, what) in [
            (QueryConfig::new().call_timeout("0 seconds"), "the time limit of calls"),
            (QueryConfig::new().polling_delay("-1 seconds"), "the polling delay"),
            (QueryConfig::new().idle_event_interval("soon"), "the interval of idle events is `soon`"),
            (QueryConfig::new().refresh_static_tables_every("-5 minutes"), "static tables"),
        ] {
            let error = config.checked().unwrap_err();
            assert!(error.message().contains(what), "{error}");
        }
    }
}
