//! Who wants to hear of a query's life, and how it is delivered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use super::QueryProgress;
use crate::error::{Error, Result, words_of_panic};
use crate::id::{QueryId, RunId};

/// So many events wait for a slow listener; of more, the oldest about batches and idleness are dropped.
const EVENTS_WAITING: usize = 1_000;

/// When the run is over, a listener that is busy with one event for longer is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Something that happened to a query.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum QueryEvent {
    /// A run began; reported before `start` returns.
    #[non_exhaustive]
    Started {
        /// The query.
        id: QueryId,
        /// This run.
        run_id: RunId,
        /// Its name.
        name: Option<String>,
        /// When, ISO 8601.
        timestamp: String,
    },
    /// A batch is done.
    Progress(Arc<QueryProgress>),
    /// There has been nothing to do for a while.
    #[non_exhaustive]
    Idle {
        /// The query.
        id: QueryId,
        /// This run.
        run_id: RunId,
        /// When, ISO 8601.
        timestamp: String,
    },
    /// A source does not say what it has, and there is nothing else to do: reported when that begins, and again after a
    /// while.
    #[non_exhaustive]
    Waiting {
        /// The query.
        id: QueryId,
        /// This run.
        run_id: RunId,
        /// When, ISO 8601.
        timestamp: String,
        /// The source, for people.
        source: String,
        /// Since when it does not answer, ISO 8601.
        since: String,
        /// Why.
        why: Error,
    },
    /// The query failed for a reason that may pass, and starts again by its
    /// [`RestartPolicy`](crate::query::RestartPolicy).
    #[non_exhaustive]
    Restarting {
        /// The query.
        id: QueryId,
        /// This run: it is the same for those who watch it.
        run_id: RunId,
        /// When, ISO 8601.
        timestamp: String,
        /// What failed.
        error: Error,
        /// How often it failed since the last batch that was committed.
        failures: u32,
        /// When it starts again, in milliseconds from now.
        delay_ms: u64,
    },
    /// The run is over: it has let go of its checkpoint, and the query may be started again.
    #[non_exhaustive]
    Terminated {
        /// The query.
        id: QueryId,
        /// This run.
        run_id: RunId,
        /// Why, if it failed.
        error: Option<Error>,
    },
}

/// Hears of a query's life: in order, one event at a time, on a thread of its own, so that a slow listener delays no batch.
///
/// 1,000 events wait for a listener. If it falls further behind, it misses the oldest about batches and idleness, and
/// a warning says so; the beginning and the end of a run are never missed. A panic in a listener is logged, and neither the
/// other listeners nor its next event suffer. Whoever waits for the end of a query waits until its listeners have heard of
/// it, too, but not for one that is busy with a single event for more than five seconds, and not in a listener itself: there
/// a query may be stopped and started again.
pub trait QueryListener: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &QueryEvent);
}

thread_local! {
    /// Whether this thread delivers events to listeners.
    static DELIVERS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is called in a listener. What it waits for must not wait for listeners.
pub(crate) fn is_in_listener() -> bool {
    DELIVERS.get()
}

/// Hands events to listeners.
#[derive(Debug)]
pub(crate) struct EventQueue {
    queue: Option<Arc<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    inner: Mutex<Waiting>,
    changed: Condvar,
    /// For whoever waits for the end.
    delivered: watch::Sender<Delivered>,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<QueryEvent>,
    /// How many were dropped since the last that was delivered.
    missed: u64,
    /// No more will come.
    closed: bool,
}

/// How far delivery is.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Delivered {
    events: u64,
    /// All have been delivered.
    done: bool,
}

impl EventQueue {
    /// A thread is only made if there is someone to listen.
    pub(crate) fn new(listeners: Vec<Arc<dyn QueryListener>>) -> Result<Self> {
        if listeners.is_empty() {
            return Ok(EventQueue { queue: None });
        }
        let queue = Arc::new(Queue::default());
        let delivered = Arc::clone(&queue);
        std::thread::Builder::new()
            .name("tidewater-listeners".into())
            .spawn(move || delivered.deliver(listeners))
            .map_err(|e| Error::internal(format!("cannot start the listeners' thread: {e}")).with_source(e))?;
        Ok(EventQueue { queue: Some(queue) })
    }

    pub(crate) fn send(&self, event: impl FnOnce() -> QueryEvent) {
        if let Some(queue) = &self.queue {
            queue.push(event());
        }
    }

    /// Waits until all events have been delivered, unless a listener takes too long.
    pub(crate) async fn finish(self) {
        let Some(queue) = &self.queue else { return };
        queue.close();
        let mut delivered = queue.delivered.subscribe();
        while !delivered.borrow_and_update().done {
            // Listeners run in real time, whatever the clock of the query shows.
            if tokio::time::timeout(PATIENCE, delivered.changed()).await.is_err() {
                tracing::warn!(
                    "a query listener is busy with one event for more than {PATIENCE:?}: the query ends without waiting for it"
                );
                return;
            }
        }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        if let Some(queue) = &self.queue {
            queue.close();
        }
    }
}

impl Queue {
    fn push(&self, event: QueryEvent) {
        let mut waiting = self.inner.lock();
        let may_be_missed =
            |event: &QueryEvent| !matches!(event, QueryEvent::Started { .. } | QueryEvent::Terminated { .. });
        if waiting.events.len() >= EVENTS_WAITING
            && let Some(oldest) = waiting.events.iter().position(may_be_missed)
        {
            waiting.events.remove(oldest);
            if waiting.missed == 0 {
                tracing::warn!("a query listener is {EVENTS_WAITING} events behind: it misses the oldest from here on");
            }
            waiting.missed += 1;
        }
        waiting.events.push_back(event);
        self.changed.notify_all();
    }

    fn close(&self) {
        self.inner.lock().closed = true;
        self.changed.notify_all();
    }

    /// The next event; `None` if no more will come.
    fn next(&self) -> Option<QueryEvent> {
        let mut waiting = self.inner.lock();
        loop {
            if let Some(event) = waiting.events.pop_front() {
                match std::mem::take(&mut waiting.missed) {
                    0 => {}
                    missed => tracing::warn!(missed, "a query listener was too slow to hear of everything"),
                }
                return Some(event);
            }
            if waiting.closed {
                return None;
            }
            self.changed.wait(&mut waiting);
        }
    }

    /// The life of the listeners' thread.
    fn deliver(&self, listeners: Vec<Arc<dyn QueryListener>>) {
        DELIVERS.set(true);
        while let Some(event) = self.next() {
            for listener in &listeners {
                // What a listener makes of itself by a panic is its own affair.
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| listener.on_event(&event))) {
                    tracing::error!(?event, "a query listener panicked: {}", words_of_panic(panic.as_ref()));
                }
            }
            self.delivered.send_modify(|delivered| delivered.events += 1);
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(listeners))) {
            tracing::error!("a query listener panicked when it was dropped: {}", words_of_panic(panic.as_ref()));
        }
        self.delivered.send_modify(|delivered| delivered.done = true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::progress::timestamp;

    /// Waits at its first event until it may go on, and counts.
    struct Slow {
        go_on: Mutex<mpsc::Receiver<()>>,
        heard: Mutex<Vec<QueryEvent>>,
    }

    impl QueryListener for Slow {
        fn on_event(&self, event: &QueryEvent) {
            if self.heard.lock().is_empty() {
                let _ = self.go_on.lock().recv();
            }
            self.heard.lock().push(event.clone());
        }
    }

    #[tokio::test]
    async fn what_waits_for_a_slow_listener_is_bounded() {
        let (id, run_id) = (QueryId::random(), RunId::random());
        let (free, go_on) = mpsc::channel();
        let slow = Arc::new(Slow { go_on: Mutex::new(go_on), heard: Mutex::default() });
        let events = EventQueue::new(vec![Arc::clone(&slow) as _]).unwrap();
        events.send(|| QueryEvent::Started { id, run_id, name: None, timestamp: timestamp(0) });
        for at in 0..5_000 {
            events.send(|| QueryEvent::Idle { id, run_id, timestamp: timestamp(at) });
        }
        events.send(|| QueryEvent::Terminated { id, run_id, error: None });
        let queue = Arc::clone(events.queue.as_ref().unwrap());
        assert!(queue.inner.lock().events.len() <= EVENTS_WAITING);
        free.send(()).unwrap();
        events.finish().await;
        assert!(queue.delivered.borrow().done);
        let heard = slow.heard.lock();
        assert!(matches!(heard.first(), Some(QueryEvent::Started { .. })));
        assert!(matches!(heard.last(), Some(QueryEvent::Terminated { .. })));
        assert!((EVENTS_WAITING..EVENTS_WAITING + 2).contains(&heard.len()), "{}", heard.len());
        let newest = timestamp(4_999);
        let last = heard.iter().rev().find_map(|event| match event {
            QueryEvent::Idle { timestamp, .. } => Some(timestamp),
            _ => None,
        });
        assert_eq!(last, Some(&newest), "the newest are kept");
    }
}
