//! Waiting between two rounds.

use futures::future::{BoxFuture, select_all};

use super::Driver;
use super::decide::{Looks, delay_ms, together_ms};
use crate::error::Result;
use crate::execution::runtime_is_gone;
use crate::trigger::Schedule;

impl Driver {
    /// Waits until the trigger asks for the next round, a source has news, the query is stopped, or somebody is in a hurry.
    ///
    /// # Errors
    ///
    /// If the runtime is shut down meanwhile.
    pub(super) async fn pause(&self, started_ms: i64, ran: bool) -> Result<()> {
        let now_ms = self.clock.now_ms();
        let is_rhythmic = matches!(self.trigger, Schedule::ProcessingTime { .. });
        let news = if ran || is_rhythmic { None } else { self.news() };
        let looks = Looks {
            delay_ms: self.config.polling_delay_ms,
            longest_ms: self.config.idle_event_interval_ms,
            took_ms: if self.silences.any() { 0 } else { now_ms.saturating_sub(started_ms) },
            idle_ms: self.clock.elapsed().saturating_sub(self.idle_since).as_millis() as i64,
            polling_queries: self.executor.polling_queries(),
            sources_notify: news.is_some(),
        };
        let Some(next_ms) = self.trigger.next_round_ms(started_ms, now_ms, ran, delay_ms(looks)) else {
            return self.runtimes.check();
        };
        let polls = news.is_none() && !is_rhythmic;
        let is_alone = !polls || ran || !self.clock.runs_by_itself();
        let next_ms = if is_alone { next_ms } else { together_ms(next_ms, looks.polling_queries) };
        let _polls = polls.then(|| self.executor.polls());
        let news = async {
            match news {
                Some(news) => drop(select_all(news).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.clock.sleep_until(next_ms) => self.runtimes.check(),
            () = news => self.runtimes.check(),
            () = self.shared.wake.notified() => Ok(()),
            () = self.runtimes.gone() => Err(runtime_is_gone()),
        }
    }

    /// What to wait for instead of asking, if every source says when there is news, and nothing but news is waited for.
    fn news(&self) -> Option<Vec<BoxFuture<'static, ()>>> {
        let waits_for_news = self.clock.runs_by_itself() && !self.silences.any() && !self.readers.is_empty();
        waits_for_news.then(|| self.readers.iter().map(|reader| reader.news()).collect::<Option<_>>()).flatten()
    }
}
