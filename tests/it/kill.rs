//! `kill -9` of the running example at random moments, restarted each time, until its work is done.
//!
//! `TIDEWATER_KILLS=N` says how often (50), `TIDEWATER_SEED=S` when (1).

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use tidewater::testing::{assert_same_rows, table};
use tidewater_book::events::Lcg;
use tidewater_book::files::{Format, committed_rows, data_files, rows_of};

const DAYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights");

const DAYS_IN_JANUARY: u64 = 31;

/// A run is killed this long after its start at the latest: far enough to commit some batches, not all of them.
const LIFE_MS_MAX: u64 = 250;

/// How often each day is added to the input, at first and whenever all was read before all kills were done.
const COPIES_PER_REFILL: u64 = 8;

fn output_schema() -> SchemaRef {
    let texts = ["carrier", "airline", "tailnum", "origin", "dest", "band"].map(|name| (name, "string"));
    let numbers = ["flight", "dep_delay", "arr_delay", "distance"].map(|name| (name, "int"));
    table::schema(&[&[("time_hour", "timestamp")][..], &texts, &numbers].concat()).unwrap()
}

struct Job {
    input: PathBuf,
    output: PathBuf,
    checkpoint: PathBuf,
    copies: u64,
}

impl Job {
    /// The example, built beside this test.
    fn binary() -> PathBuf {
        let test = std::env::current_exe().unwrap();
        let binary = test.parent().and_then(Path::parent).unwrap().join("examples/flights");
        assert!(binary.exists(), "{} is not built: cargo build --release --example flights", binary.display());
        binary
    }

    fn new(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        Job { input: path("in"), output: path("out/delays"), checkpoint: path("out/checkpoint"), copies: 0 }
    }

    /// Adds every day's file a few more times, under other names.
    fn refill(&mut self) {
        std::fs::create_dir_all(&self.input).unwrap();
        for copy in self.copies..self.copies + COPIES_PER_REFILL {
            for day in std::fs::read_dir(DAYS).unwrap().map(|entry| entry.unwrap().path()) {
                let name = format!("{}-{copy}.csv", day.file_stem().unwrap().to_string_lossy());
                let hidden = self.input.join(format!(".{name}"));
                std::fs::copy(&day, &hidden).unwrap();
                std::fs::rename(&hidden, self.input.join(name)).unwrap();
            }
        }
        self.copies += COPIES_PER_REFILL;
    }

    fn start(&self, more: &[&str]) -> Child {
        Command::new(Self::binary())
            .arg("--input")
            .arg(&self.input)
            .arg("--output")
            .arg(&self.output)
            .arg("--checkpoint")
            .arg(&self.checkpoint)
            .args(["--partitions", "3"])
            .args(more)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn finish(&self, more: &[&str]) {
        let ended = self.start(more).wait_with_output().unwrap();
        assert!(ended.status.success(), "flights {more:?} failed:\n{}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Files in the input.
    fn files(&self) -> u64 {
        self.copies * DAYS_IN_JANUARY
    }

    /// Batches committed so far, by the highest entry of the log.
    fn committed(&self) -> u64 {
        let Ok(entries) = std::fs::read_dir(self.checkpoint.join("commits")) else { return 0 };
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<u64>().ok());
        ids.max().map_or(0, |last| last + 1)
    }
}

/// Lets it live for so long, then kills it. Whether there was still something to kill.
fn kill_after(mut running: Child, life: Duration) -> bool {
    let started = Instant::now();
    while started.elapsed() < life {
        if let Some(status) = running.try_wait().unwrap() {
            let output = running.wait_with_output().unwrap();
            assert!(status.success(), "flights failed of itself:\n{}", String::from_utf8_lossy(&output.stderr));
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().expect(name));
    let (kills, seed) = (number("TIDEWATER_KILLS", 50), number("TIDEWATER_SEED", 1));
    let dir = tempfile::tempdir().unwrap();
    let mut job = Job::new(dir.path());
    job.refill();

    let mut random = Lcg::new(seed);
    let mut moments = vec![];
    let mut after_commit = 0;
    while (moments.len() as u64) < kills {
        if job.committed() == job.files() {
            job.refill();
        }
        let life = Duration::from_millis(5 + random.below(LIFE_MS_MAX));
        let before = job.committed();
        let running = job.start(&["--files-per-batch", "1"]);
        let was_running = kill_after(running, life);
        let after = job.committed();
        // A kill counts if it came in the middle of the work, not after the last batch.
        if was_running && after < job.files() {
            after_commit += u64::from(after > before);
            moments.push(format!("{} ms ({after} batches)", life.as_millis()));
        }
    }
    println!(
        "kill -9, seed {seed}: {kills} kills hit a process with work to do, {after_commit} of them after it had committed a batch"
    );
    println!("killed after: {}", moments.join(", "));

    job.finish(&["--files-per-batch", "1"]);
    job.finish(&["--batch"]);
    let schema = output_schema();
    let written = committed_rows(&job.output, Format::Parquet, &schema).await.unwrap();
    let batch = PathBuf::from(format!("{}-batch", job.output.display()));
    let expected = rows_of(&batch, Format::Parquet, &schema).unwrap();
    let rows: usize = expected.iter().map(|rows| rows.num_rows()).sum();
    println!("{} input files, {} batches, {rows} rows", job.files(), job.committed());
    println!("{} data files, some of them of batches that were killed", data_files(&job.output).len());
    assert!(rows > 0);
    assert_same_rows(&expected, &written);
    assert_eq!(job.committed(), job.files(), "one file per batch, each taken once");
}
