//! The queries of a session. Two may not share a checkpoint.

use std::sync::Arc;

use futures::future::select_all;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::StreamingQuery;
use crate::error::{Error, Result};
use crate::id::QueryId;

/// All queries started in a session, whether they run or have ended.
#[derive(Debug, Clone, Default)]
pub struct QueryManager {
    inner: Arc<Mutex<Inner>>,
    /// How many queries were started.
    started: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    queries: Vec<StreamingQuery>,
    /// Checkpoint and name of every run that lives or is being started.
    reserved: Vec<(String, Option<String>)>,
}

impl QueryManager {
    /// The queries that run.
    pub fn active(&self) -> Vec<StreamingQuery> {
        self.inner.lock().queries.iter().filter(|query| query.is_active()).cloned().collect()
    }

    /// The newest run of the query with this id, if it was started in this session and has not been forgotten.
    pub fn get(&self, id: QueryId) -> Option<StreamingQuery> {
        self.inner.lock().queries.iter().rev().find(|query| query.id() == id).cloned()
    }

    /// Waits until any query has ended that was not forgotten, whether it was started before or after this is called;
    /// returns at once if one has. Where none is ever started, it waits forever.
    ///
    /// # Errors
    ///
    /// The error it failed with.
    pub async fn await_any_termination(&self) -> Result<()> {
        let mut started = self.started.subscribe();
        loop {
            started.borrow_and_update();
            let queries = self.inner.lock().queries.clone();
            let waiting: Vec<_> = queries.iter().map(|query| Box::pin(query.await_termination())).collect();
            let any_ended = async {
                match waiting.is_empty() {
                    true => std::future::pending().await,
                    false => select_all(waiting).await.0,
                }
            };
            tokio::select! {
                biased;
                outcome = any_ended => return outcome,
                // The sender lives in `self`: it cannot be gone.
                _ = started.changed() => {}
            }
        }
    }

    /// Forgets the queries that have ended, so that [`await_any_termination`](Self::await_any_termination) waits for others.
    #[doc(alias = "resetTerminated")]
    pub fn forget_terminated(&self) {
        self.inner.lock().queries.retain(StreamingQuery::is_active);
    }

    pub(crate) fn add(&self, query: StreamingQuery) {
        self.inner.lock().queries.push(query);
        self.started.send_modify(|count| *count += 1);
    }

    /// Holds a checkpoint and a name for a run that is about to start, until the reservation is dropped.
    pub(super) fn reserve(&self, checkpoint: String, name: Option<String>) -> Result<Reservation> {
        let mut inner = self.inner.lock();
        let in_memory = checkpoint.starts_with("memory:");
        if !in_memory && inner.reserved.iter().any(|(taken, _)| *taken == checkpoint) {
            return Err(Error::invalid("a running query of this session uses this checkpoint")
                .with_file(checkpoint)
                .with_hint("stop that query first, or give this one a checkpoint of its own"));
        }
        if let Some(name) = &name
            && inner.reserved.iter().any(|(_, taken)| taken.as_ref() == Some(name))
        {
            return Err(Error::invalid(format!("a running query of this session is named `{name}`"))
                .with_hint("choose another name"));
        }
        inner.reserved.push((checkpoint.clone(), name.clone()));
        Ok(Reservation { manager: self.clone(), checkpoint, name })
    }
}

/// A checkpoint and a name that are in use.
#[derive(Debug)]
pub(super) struct Reservation {
    manager: QueryManager,
    checkpoint: String,
    name: Option<String>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.manager.inner.lock();
        let own = |(checkpoint, name): &(String, Option<String>)| *checkpoint == self.checkpoint && *name == self.name;
        if let Some(place) = inner.reserved.iter().position(own) {
            inner.reserved.swap_remove(place);
        }
    }
}
