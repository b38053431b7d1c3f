//! Who wants to hear of a query's life, and how it is delivered.

use std::sync::{Arc, mpsc};

use super::QueryProgress;
use crate::error::{Error, Result};
use crate::id::{QueryId, RunId};

/// Something that happened to a query.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum QueryEvent {
    /// A run began; told before `start` returns.
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
    Idle {
        /// The query.
        id: QueryId,
        /// This run.
        run_id: RunId,
        /// When, ISO 8601.
        timestamp: String,
    },
    /// A source does not say what it has, and there is nothing else to do: told when that begins, and again after a while.
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
    /// The run ended.
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
pub trait QueryListener: Send + Sync {
    /// Something happened.
    fn on_event(&self, event: &QueryEvent);
}

/// Hands events to listeners. All events queued are delivered before the run counts as ended.
#[derive(Debug)]
pub(crate) struct EventQueue {
    sender: Option<mpsc::Sender<QueryEvent>>,
    deliverer: Option<std::thread::JoinHandle<()>>,
}

impl EventQueue {
    /// A thread is only made if there is someone to listen.
    pub(crate) fn new(listeners: Vec<Arc<dyn QueryListener>>) -> Result<Self> {
        if listeners.is_empty() {
            return Ok(EventQueue { sender: None, deliverer: None });
        }
        let (sender, receiver) = mpsc::channel::<QueryEvent>();
        let deliver = move || {
            for event in receiver {
                listeners.iter().for_each(|listener| listener.on_event(&event));
            }
        };
        let deliverer = std::thread::Builder::new()
            .name("tidewater-listeners".into())
            .spawn(deliver)
            .map_err(|e| Error::internal(format!("cannot start the listeners' thread: {e}")).caused_by(e))?;
        Ok(EventQueue { sender: Some(sender), deliverer: Some(deliverer) })
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> QueryEvent) {
        if let Some(sender) = &self.sender {
            // A listener that panicked took the receiver with it; the query goes on.
            let _ = sender.send(event());
        }
    }
}

impl Drop for EventQueue {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(deliverer) = self.deliverer.take()
            && deliverer.join().is_err()
        {
            tracing::error!("a query listener panicked");
        }
    }
}
