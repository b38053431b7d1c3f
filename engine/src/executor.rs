//! The threads that queries run on.
//!
//! Two kinds, of the engine's own, so that no query borrows what its caller needs:
//!
//! ```text
//! driver, partition tasks, start, loading ─▶ futures ─ woken ─▶ one queue ─▶ [rayon pool]   computes, never waits
//!                                               ▲                               │ polls
//!                                               └────── wakes ── [IO runtime] ◀─┘           waits, never computes
//! ```
//!
//! A task is a future whose polls run on the pool. Whatever it waits for (storage, a timer, another task) keeps no
//! thread; when it is woken, it goes to the end of the queue, and whichever thread of the pool is free polls the one at
//! the front. So all queries of a process take turns, and one that waits forever blocks nobody. The IO runtime is
//! entered while a task is polled: whatever its code spawns, or hands to blocking threads, runs there.
//!
//! Dropping a task cancels it. Code that must block its thread says so with [`block_in_place`]; another thread takes its place
//! meanwhile.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use async_task::Runnable;
use parking_lot::{Condvar, Mutex};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::runtime::{Builder, Handle, Runtime, RuntimeFlavor};
use tracing::instrument::WithSubscriber;

use crate::error::{Error, Result, words_of_panic};

/// A future that runs on the pool. Dropping it cancels it; awaiting it gives its output.
pub(crate) type Task<T> = async_task::Task<T>;

/// Threads for IO: they wait for the most part.
const IO_THREADS: usize = 2;

/// User code recurses on these stacks, too.
const STACK_BYTES: usize = 8 << 20;

/// The threads that queries run on: a pool for computation, and a tokio runtime for IO and timers.
///
/// All queries of a process share [one](Self::global) unless they are given another with
/// [`StreamWriter::executor`](crate::query::StreamWriter::executor). Clones are the same executor; its threads end when the
/// last is dropped and the last query on it has ended.
///
/// ```
/// use tidewater::executor::Executor;
///
/// // All queries that get this executor share one thread for computation.
/// let executor = Executor::builder().threads(1).build()?;
/// assert_eq!(executor.threads(), 1);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Executor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pool: ThreadPool,
    /// Tasks that can go on, the longest waiting first. For each, the pool has one job.
    ready: Mutex<VecDeque<Runnable>>,
    /// Wakes threads that stand in for one that blocks.
    more: Condvar,
    io: Io,
    /// How many queries wait for data by looking for it.
    polling: AtomicUsize,
}

/// Where IO is waited for.
#[derive(Debug)]
enum Io {
    /// `None` only while it is dropped.
    Own(Option<Runtime>, Handle),
    Borrowed(Handle),
}

/// Makes an [`Executor`].
#[derive(Debug, Clone, Default)]
pub struct ExecutorBuilder {
    threads: Option<usize>,
    runtime: Option<Handle>,
}

impl ExecutorBuilder {
    /// So many threads for computation, for all queries on this executor together. Default: the machine's cores.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.max(1));
        self
    }

    /// A runtime of the program for IO, in the place of one of the executor's own. It must be multi-threaded, with its IO and
    /// time drivers enabled, and live as long as the queries; when it is shut down, they fail.
    #[must_use]
    pub fn runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }

    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// If the runtime that was given has a single thread, or the operating system gives no threads.
    pub fn build(self) -> Result<Executor> {
        let failed = |e: &dyn std::fmt::Display| {
            Error::internal(format!("the threads of the engine cannot be started: {e}"))
                .with_hint("see how many threads the process may have")
        };
        let io = match self.runtime {
            Some(runtime) if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread => {
                return Err(Error::invalid("an executor cannot use a tokio runtime of one thread: it may be busy or idle while a query needs it")
                    .with_hint("give it a multi-threaded runtime, or none: then it has one of its own"));
            }
            Some(runtime) => Io::Borrowed(runtime),
            None => {
                let runtime = Builder::new_multi_thread()
                    .worker_threads(IO_THREADS)
                    .thread_name("tidewater-io")
                    .enable_all()
                    .build()
                    .map_err(|e| failed(&e).with_source(e))?;
                let handle = runtime.handle().clone();
                Io::Own(Some(runtime), handle)
            }
        };
        let threads = self.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|number| format!("tidewater-{number}"))
            .stack_size(STACK_BYTES)
            .build()
            .map_err(|e| failed(&e).with_source(e))?;
        Ok(Executor {
            inner: Arc::new(Inner {
                pool,
                ready: Mutex::default(),
                more: Condvar::new(),
                io,
                polling: AtomicUsize::new(0),
            }),
        })
    }
}

impl Executor {
    /// Begins to make one.
    pub fn builder() -> ExecutorBuilder {
        ExecutorBuilder::default()
    }

    /// The executor of the process, which queries use that are given no other.
    ///
    /// # Errors
    ///
    /// If the operating system gives no threads for it.
    pub fn global() -> Result<Self> {
        static GLOBAL: OnceLock<Result<Executor>> = OnceLock::new();
        GLOBAL.get_or_init(|| Self::builder().build()).clone()
    }

    /// How many threads compute.
    pub fn threads(&self) -> usize {
        self.inner.pool.current_num_threads()
    }

    /// The runtime that waits for IO.
    pub(crate) fn io(&self) -> &Handle {
        self.inner.io.handle()
    }

    /// Whether the program may shut the IO runtime down under a query.
    pub(crate) fn has_borrowed_io(&self) -> bool {
        matches!(self.inner.io, Io::Borrowed(_))
    }

    /// Counts a query among those that look for data again and again, until what this returns is dropped.
    pub(crate) fn polls(&self) -> Polling {
        self.inner.polling.fetch_add(1, Ordering::Relaxed);
        Polling(Arc::clone(&self.inner))
    }

    /// How many queries look for data again and again.
    pub(crate) fn polling_queries(&self) -> usize {
        self.inner.polling.load(Ordering::Relaxed)
    }

    /// Runs a future on the pool. A panic in it goes to whoever awaits the task.
    pub(crate) fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> Task<T> {
        let inner = Arc::clone(&self.inner);
        // A subscriber to the engine's log may be installed on this thread only.
        let work = work.with_current_subscriber();
        let builder = async_task::Builder::new().propagate_panic(true);
        let (runnable, task) = builder.spawn(|_| work, move |runnable| inner.schedule(runnable));
        runnable.schedule();
        task
    }
}

/// A query that looks for data again and again.
#[derive(Debug)]
pub(crate) struct Polling(Arc<Inner>);

impl Drop for Polling {
    fn drop(&mut self) {
        self.0.polling.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// Puts a task at the end of the queue, and has the pool poll whichever is at the front. What the pool has in its own
    /// deques is last in, first out, and would let tasks that yield keep others from their turn.
    fn schedule(self: &Arc<Self>, runnable: Runnable) {
        self.ready.lock().push_back(runnable);
        self.more.notify_one();
        let inner = Arc::clone(self);
        self.pool.spawn(move || inner.poll_next());
    }

    fn poll_next(self: &Arc<Self>) {
        // A thread that stands in may have been faster.
        let next = self.ready.lock().pop_front();
        if let Some(runnable) = next {
            self.poll(runnable);
        }
    }

    fn poll(self: &Arc<Self>, runnable: Runnable) {
        let _io = self.io.handle().enter();
        let before = AT_WORK_FOR.replace(Some(Arc::clone(self)));
        // The task keeps its own panics; this one is of what a cancelled task drops.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| runnable.run())) {
            tracing::error!("what a task left behind panicked when it was dropped: {}", words_of_panic(panic.as_ref()));
        }
        AT_WORK_FOR.replace(before);
    }

    /// Does the work of a thread that blocks, until it is back.
    fn stand_in(self: &Arc<Self>, is_back: &AtomicBool) {
        let mut ready = self.ready.lock();
        while !is_back.load(Ordering::Acquire) {
            match ready.pop_front() {
                Some(runnable) => {
                    drop(ready);
                    self.poll(runnable);
                    ready = self.ready.lock();
                }
                None => self.more.wait(&mut ready),
            }
        }
        // What woke this one may have been meant for another.
        self.more.notify_one();
    }
}

thread_local! {
    /// The executor whose tasks this thread polls right now.
    static AT_WORK_FOR: RefCell<Option<Arc<Inner>>> = const { RefCell::new(None) };
}

/// Runs code that blocks its thread, as a client library may that knows no other way to wait. On a thread of an executor,
/// another one polls tasks meanwhile, so that other queries go on; elsewhere it is simply called. For what takes
/// milliseconds and more: finding the other thread takes some microseconds.
///
/// ```
/// use tidewater::executor::block_in_place;
///
/// let answer = block_in_place(|| std::thread::spawn(|| 42).join().unwrap_or_default());
/// assert_eq!(answer, 42);
/// ```
pub fn block_in_place<T>(work: impl FnOnce() -> T) -> T {
    struct Back(Arc<Inner>, Arc<AtomicBool>);
    impl Drop for Back {
        fn drop(&mut self) {
            // Under the lock, so that who is about to wait sees it.
            let _ready = self.0.ready.lock();
            self.1.store(true, Ordering::Release);
            self.0.more.notify_all();
        }
    }

    let Some(inner) = AT_WORK_FOR.with_borrow(Option::clone) else { return work() };
    let is_back = Arc::new(AtomicBool::new(false));
    let _back = Back(Arc::clone(&inner), Arc::clone(&is_back));
    inner.io.handle().clone().spawn_blocking(move || inner.stand_in(&is_back));
    work()
}

impl Io {
    fn handle(&self) -> &Handle {
        match self {
            Io::Own(_, handle) | Io::Borrowed(handle) => handle,
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        // The last query may let go of it in async code, where waiting for its threads is forbidden.
        if let Io::Own(runtime, _) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}

/// Lets other tasks have their turn.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use rayon::prelude::*;

    use super::*;

    #[test]
    fn tasks_take_turns() {
        let executor = Executor::builder().threads(1).build().unwrap();
        let order = Arc::new(Mutex::new(vec![]));
        let endless = executor.spawn(async {
            loop {
                yield_now().await;
            }
        });
        let tasks: Vec<_> = (0..3)
            .map(|number| {
                let order = Arc::clone(&order);
                executor.spawn(async move {
                    for step in 0..3 {
                        order.lock().push((step, number));
                        yield_now().await;
                    }
                })
            })
            .collect();
        for task in tasks {
            futures::executor::block_on(task);
        }
        futures::executor::block_on(endless.cancel());
        let mut by_step = order.lock().clone();
        by_step.sort_by_key(|(step, _)| *step);
        assert_eq!(*order.lock(), by_step, "nobody is a step ahead");
    }

    #[test]
    fn panics_go_to_who_awaits_and_spare_the_pool() {
        let executor = Executor::builder().threads(1).build().unwrap();
        let task = executor.spawn(async { panic!("no") });
        assert!(catch_unwind(AssertUnwindSafe(|| futures::executor::block_on(task))).is_err());
        assert_eq!(futures::executor::block_on(executor.spawn(async { 1 })), 1);
    }

    #[test]
    fn what_a_task_calls_may_use_rayon_and_block_on_futures() {
        let executor = Executor::builder().threads(2).build().unwrap();
        let done = Arc::new(AtomicUsize::new(0));
        let tasks: Vec<_> = (0..200)
            .map(|_| {
                let done = Arc::clone(&done);
                executor.spawn(async move {
                    for _ in 0..5 {
                        let sum: u64 = (0..1_000_u64).into_par_iter().sum();
                        assert_eq!(sum, 499_500);
                        Handle::current().block_on(async {
                            tokio::task::yield_now().await;
                        });
                        yield_now().await;
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        for task in tasks {
            futures::executor::block_on(task);
        }
        assert_eq!(done.load(Ordering::Relaxed), 200);
    }

    /// One waits for the other, on a single thread.
    #[test]
    fn who_blocks_has_a_stand_in() {
        let executor = Executor::builder().threads(1).build().unwrap();
        for _ in 0..100 {
            let (sender, receiver) = std::sync::mpsc::channel();
            let waits = executor.spawn(async move { block_in_place(|| receiver.recv()) });
            let sends = executor.spawn(async move {
                yield_now().await;
                sender.send(1)
            });
            futures::executor::block_on(sends).unwrap();
            assert_eq!(futures::executor::block_on(waits), Ok(1));
        }
        assert_eq!(block_in_place(|| 2), 2, "elsewhere");
    }

    #[test]
    fn a_runtime_of_one_thread_is_refused() {
        let runtime = Builder::new_current_thread().build().unwrap();
        let refused = Executor::builder().runtime(runtime.handle().clone()).build().unwrap_err();
        assert!(refused.to_string().contains("one thread"), "{refused}");
    }
}
