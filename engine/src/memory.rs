//! How much memory the queries of a process may take together.
//!
//! A session of DataFusion has a memory pool, and by default one without a limit: then what grows too large ends with the
//! process, killed by the kernel in the middle of whatever it did. So a query that was planned with such a pool gets another,
//! which all queries of the process share: [three quarters](POOL_IS) of what the process may use, by its control group or the
//! machine. What hits the limit is an error of its query, with the name of the operator; sorts, joins and exchanges spill to
//! disk before. A pool with a limit of the user's own is left as it is.
//!
//! | What grows with data | where it is accounted | when the pool refuses |
//! |---|---|---|
//! | rows that exchanges distribute | `batch/exchange_buffer.rs` | they go to spill files |
//! | state, what a batch changes in it, and what loading and merging it holds | `state/limits.rs` | the query fails |
//! | dead letters | `batch/mod.rs` | the query fails |
//! | rows that a Kafka source reads | its tasks | smaller record batches, then the query fails |
//! | messages that librdkafka may fetch ahead, and those it has not sent yet | when it is opened | it may hold less, then the query fails |
//! | rows that a Kafka sink keeps until the commit | its writers | the query fails |
//! | row groups and parts of files that are not written yet | the file sink's writers | they are written early, then the query fails |

#[cfg(any(test, feature = "testing"))]
pub(crate) mod peak;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use datafusion::error::Result;
use datafusion::execution::memory_pool::{GreedyMemoryPool, MemoryLimit, MemoryPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};

/// The share of the memory that is accounted; the rest is for what is not: code, readers' buffers, other libraries.
const POOL_IS: (u64, u64) = (3, 4);

/// An error names so many of those who hold the most.
const CONSUMERS_NAMED: NonZeroUsize = NonZeroUsize::new(5).unwrap();

static SHARED: LazyLock<Option<Arc<dyn MemoryPool>>> = LazyLock::new(|| {
    let bytes = usable_bytes(&|path| std::fs::read_to_string(path).ok())? / POOL_IS.1 * POOL_IS.0;
    Some(pool_of(usize::try_from(bytes).unwrap_or(usize::MAX)))
});

/// A pool that gives so many bytes to whoever asks first, and names those who hold the most when it refuses.
pub(crate) fn pool_of(bytes: usize) -> Arc<dyn MemoryPool> {
    Arc::new(TrackConsumersPool::new(GreedyMemoryPool::new(bytes), CONSUMERS_NAMED))
}

/// `user`'s runtime, with the pool that all queries share if its own has no limit.
pub(crate) fn with_limit(user: &Arc<RuntimeEnv>) -> Result<Arc<RuntimeEnv>> {
    match (user.memory_pool.memory_limit(), SHARED.as_ref()) {
        (MemoryLimit::Infinite, Some(pool)) => {
            RuntimeEnvBuilder::from_runtime_env(user).with_memory_pool(Arc::clone(pool)).build_arc()
        }
        _ => Ok(Arc::clone(user)),
    }
}

/// What the process may use: the least of the limits of its control groups and of what the machine has; none where the
/// system reports neither.
fn usable_bytes(read: &dyn Fn(&Path) -> Option<String>) -> Option<u64> {
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| mem_total_bytes(&text));
    let groups = read(Path::new("/proc/self/cgroup")).map(|text| limit_files(&text)).unwrap_or_default();
    let limits = groups.iter().filter_map(|file| read(file)?.trim().parse::<u64>().ok());
    limits.chain(machine).min()
}

fn mem_total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Where the limits of a process are that is in these groups: `0::/a/b` for version 2, `4:memory:/a/b` for version 1. Groups
/// above limit it as well. Within a container the group's path may be that of the host, and its own limit lies at the top.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = vec![];
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(group)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|it| it == "memory") => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            _ => continue,
        };
        let group = Path::new(group.trim_start_matches('/'));
        files.extend(group.ancestors().map(|above| Path::new(root).join(above).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn usable(files: &[(&str, &str)]) -> Option<u64> {
        let files: HashMap<&Path, &str> = files.iter().map(|(path, text)| (Path::new(*path), *text)).collect();
        usable_bytes(&|path| files.get(path).map(|text| (*text).to_owned()))
    }

    #[test]
    fn the_least_limit_counts() {
        let machine = ("/proc/meminfo", "MemTotal:       2048 kB\nMemFree:  1 kB\n");
        assert_eq!(usable(&[]), None);
        assert_eq!(usable(&[machine]), Some(2 << 20));
        let group = ("/proc/self/cgroup", "0::/kubepods/pod7\n");
        assert_eq!(usable(&[machine, group, ("/sys/fs/cgroup/kubepods/pod7/memory.max", "max\n")]), Some(2 << 20));
        assert_eq!(usable(&[machine, group, ("/sys/fs/cgroup/kubepods/pod7/memory.max", "4096\n")]), Some(4096));
        assert_eq!(usable(&[machine, group, ("/sys/fs/cgroup/kubepods/memory.max", "8192\n")]), Some(8192), "above");
        assert_eq!(usable(&[machine, group, ("/sys/fs/cgroup/memory.max", "5\n")]), Some(5), "in a container");
        let old = ("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/docker/7\n");
        let limit = ("/sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes", "1000\n");
        assert_eq!(usable(&[machine, old, limit]), Some(1000));
        let none = ("/sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(usable(&[machine, old, none]), Some(2 << 20));
    }

    #[test]
    fn only_a_pool_without_a_limit_is_replaced() {
        let unlimited = Arc::new(RuntimeEnv::default());
        let limited = with_limit(&unlimited).unwrap();
        if SHARED.is_some() {
            assert!(matches!(limited.memory_pool.memory_limit(), MemoryLimit::Finite(_)));
            assert!(Arc::ptr_eq(&limited.memory_pool, &with_limit(&unlimited).unwrap().memory_pool), "all share it");
        }
        let own = RuntimeEnvBuilder::new().with_memory_limit(1 << 20, 1.0).build_arc().unwrap();
        assert!(Arc::ptr_eq(&own, &with_limit(&own).unwrap()));
    }
}
