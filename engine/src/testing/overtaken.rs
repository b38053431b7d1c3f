//! Pause a run at the k-th boundary call, let a second one take over, let the first go on, start a third, compare.
//!
//! A process that sleeps (a paused machine, a long garbage collection of something else, a network that hangs) and wakes up
//! behind another that took its place does not know it. Whatever it does then must be harmless: see
//! [`crash_at_every_call`](super::crash_at_every_call) for the moments, which are the same.

use std::fmt;
use std::time::Duration;

use super::faults::FaultInjector;
use crate::error::{ErrorKind, Result};

/// A life that takes longer is stuck.
const LIFE_LIMIT: Duration = Duration::from_secs(120);

/// How often a run is started again that only another one stopped, as whatever watches over it would.
const STARTS: usize = 5;

/// What came of all moments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Overtaken {
    /// Moments at which a run was paused and another took over.
    pub paused: u64,
    /// Of these: the paused run was fenced when it went on.
    pub fenced: u64,
    /// Of these: it went on to its end, for what it still did was harmless, or it took over in its turn.
    pub went_on: u64,
}

impl fmt::Display for Overtaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} moments, {} times fenced, {} times to the end", self.paused, self.fenced, self.went_on)
    }
}

/// Pauses `run` at every moment, each time in a new `world`:
///
/// ```text
/// first   ───▌ paused                    ▐─── goes on ───▶ fenced, or to its end
/// second         ─── all there is ───▶
///                                                           more rows
/// third                                                        ─── all there is ───▶ check
/// ```
///
/// `run` is the whole job, from opening the checkpoint to its end, as for [`crash_at_every_call`](super::crash_at_every_call);
/// `more` lets more rows arrive; `check` asks whether the world is as if one run had done it all.
///
/// # Errors
///
/// An error names the moment and says what went wrong: the second or third run failed, the paused one failed otherwise than
/// by being fenced, something got stuck, or the check failed.
pub async fn overtaken_at_every_moment<W, E: fmt::Display>(
    new_world: impl Fn() -> W,
    run: impl AsyncFn(&W, &FaultInjector) -> Result<()>,
    more: impl AsyncFn(&W),
    check: impl AsyncFn(&W) -> std::result::Result<(), E>,
) -> std::result::Result<Overtaken, String> {
    let (quiet, world) = (FaultInjector::disarmed(), new_world());
    run(&world, &quiet).await.map_err(|e| format!("without any pause: {e}"))?;
    more(&world).await;
    run(&world, &FaultInjector::disarmed()).await.map_err(|e| format!("with more rows, without any pause: {e}"))?;
    check(&world).await.map_err(|e| format!("without any pause: {e}"))?;

    let mut came = Overtaken::default();
    for k in 1..=quiet.call_sites() {
        let (world, falls) = (new_world(), FaultInjector::paused_at(k));
        let life = one_life(&world, &falls, &run, &more, &check);
        let fenced = match tokio::time::timeout(LIFE_LIMIT, life).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("stuck: not over after {} s", LIFE_LIMIT.as_secs())),
        };
        let Some(paused) = falls.paused() else {
            // Fewer moments than in the quiet run: background work may not have come to its last calls.
            fenced?;
            continue;
        };
        came.paused += 1;
        match fenced.map_err(|e| format!("paused at {paused}: {e}"))? {
            true => came.fenced += 1,
            false => came.went_on += 1,
        }
    }
    Ok(came)
}

/// Returns whether the first run was fenced.
async fn one_life<W, E: fmt::Display>(
    world: &W,
    falls: &FaultInjector,
    run: &impl AsyncFn(&W, &FaultInjector) -> Result<()>,
    more: &impl AsyncFn(&W),
    check: &impl AsyncFn(&W) -> std::result::Result<(), E>,
) -> std::result::Result<bool, String> {
    let mut first = Box::pin(run(world, falls));
    let mut ended = tokio::select! {
        outcome = &mut first => Some(outcome),
        () = falls.wait_for_pause() => None,
    };
    {
        // Where background work was paused, the first run goes on meanwhile.
        let mut second = Box::pin(to_the_end(world, run));
        let outcome = loop {
            tokio::select! {
                outcome = &mut second => break outcome,
                outcome = &mut first, if ended.is_none() => ended = Some(outcome),
            }
        };
        outcome.map_err(|e| format!("the second run: {e}"))?;
    }
    falls.go_on();
    let first = match ended {
        Some(outcome) => outcome,
        None => first.await,
    };
    let fenced = match first {
        Ok(()) => false,
        Err(e) if e.kind() == ErrorKind::Fenced => true,
        Err(e) => return Err(format!("the paused run, when it went on: {e}")),
    };
    more(world).await;
    to_the_end(world, run).await.map_err(|e| format!("the third run: {e}"))?;
    check(world).await.map_err(|e| format!("after the third run: {e}"))?;
    Ok(fenced)
}

/// Runs until nothing is left; one that is fenced is started again.
async fn to_the_end<W>(world: &W, run: &impl AsyncFn(&W, &FaultInjector) -> Result<()>) -> Result<()> {
    let mut starts = 1;
    loop {
        match run(world, &FaultInjector::disarmed()).await {
            Err(e) if e.kind() == ErrorKind::Fenced && starts < STARTS => starts += 1,
            outcome => return outcome,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::checkpoint::{CreateOutcome, MetadataStore, memory_store};
    use crate::error::Error;
    use crate::id::RunId;
    use crate::testing::FaultyStore;

    /// Files, and how many were ever created.
    type World = (Arc<dyn MetadataStore>, AtomicUsize);

    fn new_world() -> World {
        (memory_store(), AtomicUsize::new(0))
    }

    /// A job that adds a file and, if careless, deletes what it takes for left over.
    async fn adds((store, created): &World, falls: &FaultInjector, careful: bool) -> Result<()> {
        let store = FaultyStore::new(Arc::clone(store), falls);
        let there = store.list("").await?;
        let next = there.len().to_string();
        if store.create(&next, RunId::random().to_string().into()).await? == CreateOutcome::AlreadyExists {
            return Err(Error::new(ErrorKind::Fenced, "someone else was first"));
        }
        created.fetch_add(1, Ordering::SeqCst);
        if !careful {
            for name in store.list("").await?.iter().filter(|name| !there.contains(name) && **name != next) {
                store.delete(name).await?;
            }
        }
        Ok(())
    }

    async fn has_all((store, created): &World) -> std::result::Result<(), String> {
        let mut names = store.list("").await.map_err(|e| e.to_string())?;
        names.sort();
        let expected: Vec<String> = (0..created.load(Ordering::SeqCst)).map(|n| n.to_string()).collect();
        if names == expected { Ok(()) } else { Err(format!("found {names:?}, not {expected:?}")) }
    }

    #[tokio::test]
    async fn every_moment_is_tried_and_counted() {
        let run = async |world: &World, falls: &FaultInjector| adds(world, falls, true).await;
        let came = overtaken_at_every_moment(new_world, run, async |_| {}, has_all).await.unwrap();
        assert_eq!(came.paused, 4);
        // Between listing and creating, its number is taken by the other one.
        assert_eq!((came.fenced, came.went_on), (2, 2), "{came}");
    }

    #[tokio::test]
    async fn a_careless_deletion_is_found() {
        let run = async |world: &World, falls: &FaultInjector| adds(world, falls, false).await;
        let found = overtaken_at_every_moment(new_world, run, async |_| {}, has_all).await.unwrap_err();
        assert!(found.starts_with("paused at moment") && found.contains("after the third run"), "{found}");
    }
}
