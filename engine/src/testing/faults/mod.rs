//! Die at the k-th boundary call, start again, compare.
//!
//! Everything a query does to the world crosses one of three boundaries: its source, its sink, its checkpoint. The
//! wrappers here count those calls, each twice: once before it has an effect and once after. [`FaultInjector::at`]`(k)` lets the
//! k-th of these moments be the death of the process: that call and all later ones fail, so nothing more reaches
//! storage. The next run, with [`FaultInjector::disarmed`] wrappers around the same storage, is the restart.
//!
//! [`crash_at_every_call`] tries them all: one quiet run counts the moments, then each moment has its own world and its own
//! death.
//!
//! [`FaultInjector::paused_at`]`(k)` lets the process sleep at the k-th moment instead: see [`super::overtaken`].

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::checkpoint::{CreateOutcome, MetadataStore};
use crate::error::{Error, ErrorKind, Result};

/// Counts boundary calls for all wrappers of one run, and knows when to die or to sleep. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct FaultInjector(Arc<Watch>);

#[derive(Debug, Default)]
struct Watch {
    count: Mutex<Count>,
    sleep: watch::Sender<Sleep>,
}

#[derive(Debug, Default)]
struct Count {
    moments: u64,
    die_at: Option<u64>,
    pause_at: Option<u64>,
    /// The moment of death, once it has come.
    died: Option<String>,
    /// The moment of sleep, once it has come.
    paused: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sleep {
    #[default]
    NotYet,
    Asleep,
    Over,
}

impl FaultInjector {
    /// Never dies; only counts.
    pub fn disarmed() -> Self {
        Self::default()
    }

    /// Dies at moment `k`, counted from 1.
    pub fn at(k: u64) -> Self {
        let falls = FaultInjector::disarmed();
        falls.0.count.lock().die_at = Some(k);
        falls
    }

    /// Falls asleep at moment `k`, counted from 1, until [`go_on`](Self::go_on). Only that one call waits.
    pub fn paused_at(k: u64) -> Self {
        let falls = FaultInjector::disarmed();
        falls.0.count.lock().pause_at = Some(k);
        falls
    }

    /// How many moments have passed so far.
    pub fn call_sites(&self) -> u64 {
        self.0.count.lock().moments
    }

    /// Where the process died, if it did.
    pub fn died(&self) -> Option<String> {
        self.0.count.lock().died.clone()
    }

    /// Where the process fell asleep, if it did.
    pub fn paused(&self) -> Option<String> {
        self.0.count.lock().paused.clone()
    }

    /// Waits until the process sleeps.
    pub async fn wait_for_pause(&self) {
        // The sender lives as long as `self` does.
        let _ = self.0.sleep.subscribe().wait_for(|sleep| *sleep != Sleep::NotYet).await;
    }

    /// Wakes the process, or keeps it from falling asleep.
    pub fn go_on(&self) {
        let _count = self.0.count.lock();
        self.0.sleep.send_replace(Sleep::Over);
    }

    /// One moment passes: fails if it is the last one, or if that is over; waits while the process sleeps.
    pub async fn moment(&self, moment: &str) -> Result<()> {
        if self.enter(moment)? {
            let _ = self.0.sleep.subscribe().wait_for(|sleep| *sleep == Sleep::Over).await;
        }
        Ok(())
    }

    /// Counts a moment. Returns whether it is the one to sleep at.
    fn enter(&self, moment: &str) -> Result<bool> {
        let mut count = self.0.count.lock();
        count.moments += 1;
        let this = format!("moment {}, {moment}", count.moments);
        if count.died.is_none() && count.die_at == Some(count.moments) {
            count.died = Some(this.clone());
        }
        if let Some(died) = &count.died {
            return Err(Error::new(ErrorKind::Unavailable, format!("the process died at {died}")));
        }
        if count.pause_at != Some(count.moments) || *self.0.sleep.borrow() == Sleep::Over {
            return Ok(false);
        }
        count.paused = Some(this);
        self.0.sleep.send_replace(Sleep::Asleep);
        Ok(true)
    }
}

/// Wraps a future of a boundary call into the two moments around its effect.
macro_rules! around {
    ($falls:expr, $call:literal, $effect:expr) => {{
        $falls.moment(concat!("before ", $call)).await?;
        let result = $effect;
        $falls.moment(concat!("after ", $call)).await?;
        result
    }};
}

mod sink;

mod source;

pub use self::sink::FaultySink;
pub use self::source::FaultySource;

/// A checkpoint whose calls are counted, those that a source makes to its own log too.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn MetadataStore>,
    falls: FaultInjector,
}

impl FaultyStore {
    /// Counts the calls to `inner`.
    pub fn new(inner: Arc<dyn MetadataStore>, falls: &FaultInjector) -> Self {
        FaultyStore { inner, falls: falls.clone() }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl MetadataStore for FaultyStore {
    async fn create(&self, name: &str, contents: Bytes) -> Result<CreateOutcome> {
        around!(self.falls, "checkpoint.create", self.inner.create(name, contents).await)
    }

    async fn read(&self, name: &str) -> Result<Option<Bytes>> {
        around!(self.falls, "checkpoint.read", self.inner.read(name).await)
    }

    async fn read_range(&self, name: &str, range: std::ops::Range<u64>) -> Result<Option<Bytes>> {
        around!(self.falls, "checkpoint.read", self.inner.read_range(name, range).await)
    }

    async fn list(&self, folder: &str) -> Result<Vec<String>> {
        around!(self.falls, "checkpoint.list", self.inner.list(folder).await)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        around!(self.falls, "checkpoint.delete", self.inner.delete(name).await)
    }

    async fn recover(&self, folder: &str) -> Result<()> {
        around!(self.falls, "checkpoint.recover", self.inner.recover(folder).await)
    }

    fn full_name(&self, name: &str) -> String {
        self.inner.full_name(name)
    }
}

/// Falls at every moment of `run`, each time in a new `world`, starts again, and asks `check` whether the world is as if
/// nothing had happened. Returns how many falls were tried.
///
/// `run` is the whole job, from opening the checkpoint to its end; the [`FaultInjector`] it is given belongs around its source,
/// sink and checkpoint. A job that reads all there is and ends (a trigger that ends by itself) has as many moments every
/// time it runs.
///
/// # Errors
///
/// An error names the moment of the fall and says what went wrong after it: the quiet run failed, the run failed of
/// itself, the restart failed, or the check did.
pub async fn crash_at_every_call<W, E: std::fmt::Display>(
    new_world: impl Fn() -> W,
    run: impl AsyncFn(&W, &FaultInjector) -> Result<()>,
    check: impl AsyncFn(&W) -> std::result::Result<(), E>,
) -> std::result::Result<u64, String> {
    let quiet = FaultInjector::disarmed();
    let world = new_world();
    run(&world, &quiet).await.map_err(|e| format!("without any fall: {e}"))?;
    check(&world).await.map_err(|e| format!("without any fall: {e}"))?;
    let mut fallen = 0;
    for k in 1..=quiet.call_sites() {
        let world = new_world();
        let falls = FaultInjector::at(k);
        let ended = run(&world, &falls).await;
        match (falls.died(), ended) {
            // Fewer moments than in the quiet run: background work may not have come to its last calls.
            (None, Ok(())) => {}
            (None, Err(e)) => return Err(format!("before moment {k}, of itself: {e}")),
            (Some(died), _) => {
                fallen += 1;
                let restarted = run(&world, &FaultInjector::disarmed()).await;
                restarted.map_err(|e| format!("restarted after {died}: {e}"))?;
                check(&world).await.map_err(|e| format!("after {died}: {e}"))?;
            }
        }
    }
    Ok(fallen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::memory_store;

    /// A job of two steps that forgets to look whether the first was done.
    async fn adds_twice(store: &Arc<dyn MetadataStore>, falls: &FaultInjector, careful: bool) -> Result<()> {
        let store = FaultyStore::new(Arc::clone(store), falls);
        let done = store.list("").await?.len();
        if !(careful && done > 0) {
            store.create(&format!("row-{done}"), Bytes::new()).await?;
        }
        store.create("done", Bytes::new()).await.map(|_| ())
    }

    async fn one_row(store: &Arc<dyn MetadataStore>) -> std::result::Result<(), String> {
        let rows = store.list("").await.map_err(|e| e.to_string())?.iter().filter(|n| n.starts_with("row")).count();
        if rows == 1 { Ok(()) } else { Err(format!("{rows} rows")) }
    }

    #[tokio::test]
    async fn every_moment_is_tried() {
        let tried =
            crash_at_every_call(memory_store, async |store, falls| adds_twice(store, falls, true).await, one_row).await;
        assert_eq!(tried, Ok(6));
    }

    #[tokio::test]
    async fn the_moment_of_a_wrong_answer_is_named() {
        let tried =
            crash_at_every_call(memory_store, async |store, falls| adds_twice(store, falls, false).await, one_row)
                .await;
        assert_eq!(tried, Err("after moment 4, after checkpoint.create: 2 rows".to_owned()));
    }

    #[tokio::test]
    async fn the_dead_do_nothing_more() {
        let (inner, falls) = (memory_store(), FaultInjector::at(1));
        let store = FaultyStore::new(Arc::clone(&inner), &falls);
        assert!(store.create("a", Bytes::new()).await.is_err());
        assert!(store.create("b", Bytes::new()).await.is_err());
        assert!(inner.list("").await.unwrap().is_empty());
        assert_eq!(falls.died().unwrap(), "moment 1, before checkpoint.create");
    }
}
