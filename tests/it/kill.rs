//! `kill -9` of the running example at random moments, restarted each time, until its work is done: the main job, which
//! keeps nothing, and the hourly statistics, which keep open windows.
//!
//! `TIDEWATER_KILLS=N` says how often (50), `TIDEWATER_SEED=S` when (1).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use tidewater::testing::{assert_same_rows, table};
use tidewater_workspace::events::Lcg;
use tidewater_workspace::files::{Format, committed_rows, data_files, put_file, rows_of};

const DAYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data/flights");

const DAYS_IN_JANUARY: u64 = 31;

/// A run is killed this long after its start at the latest: far enough to commit some batches, not all of them.
const LIFE_MS_MAX: u64 = 250;

/// An hour of statistics is written when the stream is so far past its end: the delay of the example's `statistics.rs`.
const DELAY_US: i64 = 2 * 3_600_000_000;

/// How often January is added to the input, at first and whenever all was read before all kills were done.
const COPIES_PER_REFILL: u64 = 8;

fn hourly_schema() -> SchemaRef {
    let times = ["hour_start", "hour_end"].map(|name| (name, "timestamp"));
    let figures = [("flights", "long"), ("mean_delay", "double"), ("worst_delay", "int"), ("share_late", "double")];
    table::schema(&[&times[..], &[("carrier", "string")], &figures].concat()).unwrap()
}

fn output_schema() -> SchemaRef {
    let texts = ["carrier", "airline", "tailnum", "origin", "dest", "band"].map(|name| (name, "string"));
    let numbers = ["flight", "dep_delay", "arr_delay", "distance"].map(|name| (name, "int"));
    table::schema(&[&[("time_hour", "timestamp")][..], &texts, &numbers].concat()).unwrap()
}

struct Job {
    input: PathBuf,
    output: PathBuf,
    checkpoint: PathBuf,
    /// Where standard error goes.
    errors: PathBuf,
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
        Job {
            input: path("in"),
            output: path("out/delays"),
            checkpoint: path("out/checkpoint"),
            errors: path("errors.txt"),
            copies: 0,
        }
    }

    /// Adds the month of flights a few more times, each a year later than the last: event time goes on, day by day, in
    /// the order in which the files are made.
    fn refill(&mut self) {
        std::fs::create_dir_all(&self.input).unwrap();
        let mut days: Vec<PathBuf> = std::fs::read_dir(DAYS).unwrap().map(|entry| entry.unwrap().path()).collect();
        days.sort();
        for copy in self.copies..self.copies + COPIES_PER_REFILL {
            let year = |text: &str| text.replace("2013-", &format!("{}-", 2013 + copy));
            for day in &days {
                let name = year(&day.file_name().unwrap().to_string_lossy());
                put_file(&self.input, &name, year(&std::fs::read_to_string(day).unwrap()).as_bytes()).unwrap();
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
            // Not a pipe: nobody reads while it runs, and the live table would fill it.
            .stderr(File::create(&self.errors).unwrap())
            .spawn()
            .unwrap()
    }

    fn finish(&self, more: &[&str]) {
        let status = self.start(more).wait().unwrap();
        assert!(status.success(), "flights {more:?} failed:\n{}", self.said());
    }

    /// What it wrote to standard error.
    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.errors).unwrap()).into_owned()
    }

    /// Lets it live for so long, then kills it. Whether there was still something to kill.
    fn kill_after(&self, mut running: Child, life: Duration) -> bool {
        let started = Instant::now();
        while started.elapsed() < life {
            if let Some(status) = running.try_wait().unwrap() {
                assert!(status.success(), "flights failed of itself:\n{}", self.said());
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        running.kill().unwrap();
        running.wait().unwrap();
        true
    }

    /// Files in the input.
    fn files(&self) -> u64 {
        self.copies * DAYS_IN_JANUARY
    }

    /// Batches of the main job committed so far, by the highest entry of the log.
    fn committed(&self) -> u64 {
        newest_commit(&self.checkpoint).map_or(0, |last| last + 1)
    }

    fn hourly_output(&self) -> PathBuf {
        beside(&self.output, "hourly")
    }

    /// Input files that the hourly statistics have taken, by the newest batch they committed: some of their batches have
    /// no rows, so they cannot be counted.
    fn hourly_taken(&self) -> u64 {
        let checkpoint = beside(&self.checkpoint, "hourly");
        let Some(newest) = newest_commit(&checkpoint) else { return 0 };
        let offsets = std::fs::read_to_string(checkpoint.join(format!("offsets/{newest}"))).unwrap();
        let source: serde_json::Value = serde_json::from_str(offsets.lines().last().unwrap()).unwrap();
        source["logOffset"].as_u64().unwrap() + 1
    }

    /// Whether both have more to do.
    fn has_work(&self) -> bool {
        self.committed() < self.files() && self.hourly_taken() < self.files()
    }
}

/// `<place>-<name>`, as the example calls what is not of its main job.
fn beside(place: &Path, name: &str) -> PathBuf {
    PathBuf::from(format!("{}-{name}", place.display()))
}

fn newest_commit(checkpoint: &Path) -> Option<u64> {
    let entries = std::fs::read_dir(checkpoint.join("commits")).ok()?;
    entries.filter_map(|entry| entry.ok()?.file_name().to_string_lossy().parse::<u64>().ok()).max()
}

/// Of the hours that a batch gives, those that a stream knows to be over.
fn final_hours(hours: &[RecordBatch]) -> Vec<RecordBatch> {
    let times = |rows: &RecordBatch, column: usize| -> Vec<i64> {
        rows.column(column).as_primitive::<TimestampMicrosecondType>().values().to_vec()
    };
    // Every flight is noted at the beginning of its hour.
    let last = hours.iter().flat_map(|rows| times(rows, 0)).max().unwrap();
    let over = |rows: &RecordBatch| -> BooleanArray {
        times(rows, 1).into_iter().map(|end| Some(end <= last - DELAY_US)).collect()
    };
    hours.iter().map(|rows| filter_record_batch(rows, &over(rows)).unwrap()).collect()
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
        if !job.has_work() {
            job.refill();
        }
        let life = Duration::from_millis(5 + random.below(LIFE_MS_MAX));
        let before = job.hourly_taken();
        let running = job.start(&["--files-per-batch", "1"]);
        let was_running = job.kill_after(running, life);
        let after = job.hourly_taken();
        // A kill counts if it came in the middle of the work of both, not after the last batch.
        if was_running && job.has_work() {
            after_commit += u64::from(after > before);
            moments.push(format!("{} ms ({} files, {after} by the hour)", life.as_millis(), job.committed()));
        }
    }
    println!(
        "kill -9, seed {seed}: {kills} kills hit a process with work to do, {after_commit} of them after a commit of windows"
    );
    println!("killed after: {}", moments.join(", "));

    job.finish(&["--files-per-batch", "1"]);
    job.finish(&["--batch"]);
    let schema = output_schema();
    let written = committed_rows(&job.output, Format::Parquet, &schema).await.unwrap();
    let expected = rows_of(&beside(&job.output, "batch"), Format::Parquet, &schema).unwrap();
    let rows: usize = expected.iter().map(|rows| rows.num_rows()).sum();
    println!("{} input files, {} batches, {rows} rows", job.files(), job.committed());
    println!("{} data files, some of them of batches that were killed", data_files(&job.output).len());
    assert!(rows > 0);
    assert_same_rows(&expected, &written);
    assert_eq!(job.committed(), job.files(), "one file per batch, each taken once");

    assert_eq!(job.hourly_taken(), job.files(), "the statistics have taken each file, too");
    let schema = hourly_schema();
    let written = committed_rows(&job.hourly_output(), Format::Parquet, &schema).await.unwrap();
    let expected = rows_of(&beside(&job.hourly_output(), "batch"), Format::Parquet, &schema).unwrap();
    let expected = final_hours(&expected);
    let rows: usize = expected.iter().map(|rows| rows.num_rows()).sum();
    println!("{rows} hours of an airline, each written once when it was over");
    assert!(rows > 1000);
    assert_same_rows(&expected, &written);
}
