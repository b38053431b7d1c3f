//! Sources that could not find out what they have. Not knowing is not the same as nothing new, and is reported as what
//! it is.

use super::Driver;
use crate::error::Error;
use crate::progress::{QueryEvent, timestamp};
use crate::source::LatestOffset;

/// By source: whether it answered when it was last asked.
#[derive(Debug, Default)]
pub(super) struct Silences(Vec<Option<Silence>>);

/// A source that does not answer.
#[derive(Debug, Clone)]
struct Silence {
    since_ms: i64,
    why: Error,
    /// Listeners were notified.
    is_reported: bool,
}

impl Silences {
    /// Whether some source does not answer.
    pub(super) fn any(&self) -> bool {
        self.0.iter().any(Option::is_some)
    }

    /// Since when this source does not answer.
    pub(super) fn since_ms(&self, source: usize) -> Option<i64> {
        self.0.get(source)?.as_ref().map(|silence| silence.since_ms)
    }

    /// The source that has been silent for longest.
    fn longest(&mut self) -> Option<(usize, &mut Silence)> {
        let silent = self.0.iter_mut().enumerate();
        silent.filter_map(|(source, silence)| Some((source, silence.as_mut()?))).min_by_key(|(_, s)| s.since_ms)
    }
}

impl Driver {
    /// Notes which sources did not answer in this round.
    pub(super) fn note_silences(&mut self, latest: &[LatestOffset], now_ms: i64) {
        let mut before = std::mem::take(&mut self.silences.0).into_iter();
        for (latest, source) in latest.iter().zip(&self.plan.sources) {
            let before = before.next().flatten();
            let query = self.shared.id;
            self.silences.0.push(match (before, &latest.unknown) {
                (None, None) => None,
                (Some(silence), None) => {
                    let since = timestamp(silence.since_ms);
                    tracing::info!(%query, source = source.description(), since, "the source answers again");
                    None
                }
                (Some(silence), Some(why)) => Some(Silence { why: why.clone(), ..silence }),
                (None, Some(why)) => {
                    tracing::warn!(%query, source = source.description(), %why, "the source does not say what it has");
                    Some(Silence { since_ms: now_ms, why: why.clone(), is_reported: false })
                }
            });
        }
        if self.silences.any() {
            let why = self.not_known().with_query(self.shared.id);
            self.shared.state.send_modify(|state| state.unknown = Some((state.rounds, why)));
        }
    }

    /// The error of a query that was to read everything there is.
    pub(super) fn not_known(&mut self) -> Error {
        let (waiting, why) = self.waiting();
        let error = Error::new(why.kind(), format!("nobody knows whether all that there is has been read: {waiting}"));
        let hint = why.hint().unwrap_or("see why the source does not answer, then start the query again");
        let error = error.with_hint(hint).with_source(why.clone());
        match why.file() {
            Some(file) => error.with_file(file),
            None => error,
        }
    }

    /// "waiting for … since …: why".
    fn waiting(&mut self) -> (String, Error) {
        let Some((source, silence)) = self.silences.longest() else {
            return ("waiting for nothing".to_owned(), Error::internal("all sources answer"));
        };
        let (since_ms, why) = (silence.since_ms, silence.why.clone());
        let source = self.plan.sources.get(source).map(|source| source.description()).unwrap_or_default();
        (format!("waiting for {source} since {}: {}", timestamp(since_ms), why.message()), why)
    }

    /// Reports what the query waits for; listeners are notified at once, and then now and then.
    pub(super) fn report_silence(&mut self, now_ms: i64) {
        let (waiting, _) = self.waiting();
        self.shared.state.send_modify(|state| {
            state.status.message = waiting;
            state.status.is_data_available = false;
            state.status.is_trigger_active = false;
        });
        let is_due = self.idle_event_is_due();
        let Some((source, silence)) = self.silences.longest().filter(|(_, silence)| is_due || !silence.is_reported)
        else {
            return;
        };
        silence.is_reported = true;
        let (since, why) = (timestamp(silence.since_ms), silence.why.clone());
        let source = self.plan.sources.get(source).map(|source| source.description()).unwrap_or_default();
        self.last_idle_event = self.clock.elapsed();
        let (id, run_id, timestamp) = (self.shared.id, self.shared.run_id, timestamp(now_ms));
        self.events.send(|| QueryEvent::Waiting { id, run_id, timestamp, source, since, why });
    }
}
