//! A stream is the batch, cut: seeded random queries over random rows out of order, cut into random batches, with
//! random partitions and restarts, give the answer of the same `DataFrame` run once over all rows. No row is late.
//!
//! `TIDEWATER_SEEDS=N` tries more seeds than 1,000, `TIDEWATER_SEED=S` only that one; a failure names its own.

use std::fmt::Write;
use std::sync::Arc;

use datafusion::prelude::*;
use serde_json::Value;
use tidewater::prelude::*;
use tidewater::testing::FaultInjector;
use tidewater_workspace::events::Lcg;

use crate::stateful::arrivals::{Arrivals, EVENTS, LEFT, RIGHT, input};
use crate::stateful::jobs::{by_window, grouped, join_where, without_near_copies};
use crate::stateful::{Input, Job, Query, Reading, World};

/// How many kinds of queries there are. A seed is of the kind that is left when it is divided by this.
const KINDS: u64 = 10;

/// Aggregates whose value does not depend on the order of the rows, in SQL.
const AGGREGATES: [&str; 28] = [
    "count(*)",
    "count(v)",
    "sum(v)",
    "min(v)",
    "max(k)",
    "avg(v)",
    "sum(x)",
    "avg(x)",
    "min(ts)",
    "stddev(x)",
    "stddev_pop(v)",
    "stddev_pop(x)",
    "count(DISTINCT v)",
    "sum(DISTINCT v)",
    "array_agg(v ORDER BY v)",
    "array_agg(DISTINCT k ORDER BY k)",
    "first_value(v ORDER BY ts, x, v)",
    "last_value(x ORDER BY ts, x)",
    "nth_value(v, 2 ORDER BY x, v)",
    "median(v)",
    "median(x)",
    "approx_distinct(v)",
    "bool_and(v > -10)",
    "bool_or(x > 60.0)",
    "bit_xor(v)",
    "string_agg(k, '-' ORDER BY k, v)",
    "sum(v) FILTER (WHERE x > 0.0)",
    "count(*) FILTER (WHERE v % 2 = 0)",
];

/// What an aggregate may be grouped by.
const KEYS: [&[&str]; 5] = [&["k"], &["v"], &["k", "v"], &["k", "x"], &[]];

/// Of which columns duplicates may be dropped; none means all.
const DISTINCT: [&[&str]; 6] = [&[], &[], &["ts", "k"], &["k", "v"], &["k"], &["ts"]];

/// Draws what a seed decides.
struct Dice {
    random: Lcg,
    /// What was drawn, for the person who reads a failure.
    told: String,
}

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn between(&mut self, least: usize, most: usize) -> usize {
        least + self.below(most - least + 1)
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn tell(&mut self, drawn: impl std::fmt::Display) {
        write!(self.told, "{drawn}; ").unwrap();
    }

    /// One to five aggregates, each with a name.
    fn aggregates(&mut self) -> Vec<String> {
        let mut drawn: Vec<&str> = (0..self.between(1, 5)).map(|_| self.one_of(&AGGREGATES)).collect();
        // DataFusion cannot give `nth_value` its order beside aggregates that want another, in a batch either.
        if drawn.iter().filter(|sql| sql.contains("ORDER BY")).count() > 1 {
            drawn.retain(|sql| !sql.starts_with("nth_value"));
        }
        if drawn.is_empty() {
            drawn.push("count(*)");
        }
        let named: Vec<String> = drawn.iter().enumerate().map(|(i, sql)| format!("{sql} AS a{i}")).collect();
        self.tell(named.join(", "));
        named
    }

    /// A tumbling window of event time, or a sliding one.
    fn window(&mut self, sliding: bool) -> Window {
        let size_ms = self.one_of(&[2_000, 5_000, 7_500, 10_000, 30_000]);
        let slide_ms = sliding.then(|| size_ms * self.between(1, 9) / 10);
        let offset_ms = [0, 0, 700, 4_000][self.below(4)] % slide_ms.unwrap_or(size_ms);
        let window = Window { size_ms, slide_ms, offset_ms };
        self.tell(format!("{window:?}"));
        window
    }

    /// A condition that bounds how far the times of two rows are apart.
    fn near(&mut self) -> String {
        let (before, after) = (self.between(0, 6), self.between(0, 8));
        let more = self.one_of(&["", "", " AND lv < rv", " AND lv > 0", " AND rv % 2 = 0"]);
        let near = format!(
            "lk = rk AND rts >= lts - INTERVAL '{before} seconds' AND rts <= lts + INTERVAL '{after} seconds'{more}"
        );
        self.tell(&near);
        near
    }
}

#[derive(Debug, Clone, Copy)]
struct Window {
    size_ms: usize,
    slide_ms: Option<usize>,
    offset_ms: usize,
}

impl Window {
    fn of(self, time: &str) -> TimeWindow {
        let ms = |ms: usize| format!("{ms} milliseconds");
        let windows = window(col(time), ms(self.size_ms)).offset(ms(self.offset_ms));
        self.slide_ms.map_or(windows.clone(), |slide_ms| windows.slide(ms(slide_ms)))
    }
}

fn as_strs(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}

/// Input, query and its run, all from one seed.
struct Drawn {
    job: Job,
    dice: Dice,
}

/// How rows of a seed come, and how long the watermark waits for them.
struct Pace {
    seed: u64,
    rows: usize,
    keys: u64,
    disorder_ms: u64,
    step_ms: u64,
    delay: String,
}

impl Pace {
    fn draw(seed: u64, dice: &mut Dice) -> Self {
        let disorder_ms = dice.one_of(&[0, 900, 5_000, 20_000]);
        let pace = Pace {
            seed,
            rows: dice.between(1, 120),
            keys: dice.between(1, 6) as u64,
            disorder_ms,
            step_ms: dice.one_of(&[0, 300, 1_000, 4_000]),
            delay: format!("{} milliseconds", disorder_ms + dice.one_of(&[1, 500, 7_000])),
        };
        dice.tell(format!("{} rows of {} keys, up to {disorder_ms} ms out of order", pace.rows, pace.keys));
        pace
    }

    /// A source of such rows, cut into batches at random, some of them empty.
    fn input(&self, dice: &mut Dice, number: u64, columns: &[(&str, &str)], adds: usize) -> Input {
        let mut arrivals = Arrivals::new(self.seed * 10 + number, self.keys, self.disorder_ms, self.step_ms);
        let mut cuts: Vec<usize> = (1..adds).map(|_| dice.below(self.rows + 1)).collect();
        cuts.sort_unstable();
        cuts.push(self.rows);
        let mut taken = 0;
        let mut batches: Vec<Vec<Value>> = vec![];
        for cut in cuts {
            batches.push((taken..cut).map(|_| arrivals.row(columns.len())).collect());
            taken = cut;
        }
        input(columns, batches)
    }
}

/// Draws a query of the seed's kind, and its input.
fn draw(seed: u64) -> Drawn {
    let mut dice = Dice { random: Lcg::new(seed), told: String::new() };
    let pace = Pace::draw(seed, &mut dice);
    let adds = dice.between(1, 7);
    let two_sides = matches!(seed % KINDS, 6 | 7) || (seed % KINDS == 8 && seed / KINDS % 4 == 3);
    let inputs = match seed % KINDS {
        _ if two_sides => {
            vec![pace.input(&mut dice, 1, &LEFT, adds), pace.input(&mut dice, 2, &RIGHT, adds)]
        }
        9 => vec![pace.input(&mut dice, 1, &EVENTS, adds), pace.input(&mut dice, 2, &EVENTS, adds)],
        _ => vec![pace.input(&mut dice, 1, &EVENTS, adds)],
    };
    let delay = pace.delay;
    let (mode, reading, query) = match seed % KINDS {
        0 => aggregate(&mut dice, OutputMode::Update),
        1 => aggregate(&mut dice, OutputMode::Complete),
        2 => windows(&mut dice, delay, false),
        3 => windows(&mut dice, delay, true),
        4 => sessions(&mut dice, delay),
        5 => duplicates(&mut dice, delay),
        6 => join(&mut dice, delay, &[JoinType::Inner]),
        7 => join(&mut dice, delay, &[JoinType::Left, JoinType::Right, JoinType::Full, JoinType::LeftSemi]),
        8 => chained(&mut dice, delay, seed / KINDS % 4),
        _ => union(&mut dice, delay),
    };
    let name = format!("seed {seed}");
    Drawn { job: Job { name, mode, reading, inputs, query, equals_batch: true }, dice }
}

/// A query, and how its answer is read.
type Shape = (OutputMode, Reading, Query);

fn appended(query: impl Fn(&SessionContext, &[DataFrame]) -> Result<DataFrame> + Send + Sync + 'static) -> Shape {
    (OutputMode::Append, Reading::Rows, Box::new(query))
}

fn aggregate(dice: &mut Dice, mode: OutputMode) -> Shape {
    let keys = dice.one_of(&KEYS);
    dice.tell(format!("group by {keys:?}, {mode}"));
    let aggregates = dice.aggregates();
    let reading = if mode == OutputMode::Update { Reading::LastByKey(keys.len()) } else { Reading::Rows };
    let query = move |_: &SessionContext, inputs: &[DataFrame]| {
        grouped(inputs[0].clone(), keys.iter().map(|key| col(*key)).collect(), &as_strs(&aggregates))
    };
    (mode, reading, Box::new(query))
}

fn windows(dice: &mut Dice, delay: String, sliding: bool) -> Shape {
    let (window, aggregates) = (dice.window(sliding), dice.aggregates());
    let update = dice.below(3) == 0;
    let query = move |_: &SessionContext, inputs: &[DataFrame]| {
        let events = inputs[0].clone().with_watermark("ts", &delay)?;
        by_window(events, window.of("ts"), &as_strs(&aggregates), false)
    };
    match update {
        true => (OutputMode::Update, Reading::LastByKey(3), Box::new(query)),
        false => appended(query),
    }
}

/// The gap of a session: the same for all rows, or by the row.
fn gap(dice: &mut Dice) -> impl Fn() -> Result<Expr> + Send + Sync + use<> {
    let (short, long, by_row) = (dice.between(1, 5), dice.between(2, 12), dice.below(2) == 0);
    dice.tell(format!("gap of {short} s{}", if by_row { format!(", {long} s where v > 5") } else { String::new() }));
    move || -> Result<Expr> {
        let seconds = |n: usize| lit(format!("{n} seconds"));
        if !by_row {
            return Ok(seconds(short));
        }
        Ok(when(col("v").gt(lit(5)), seconds(long)).otherwise(seconds(short))?)
    }
}

fn sessions(dice: &mut Dice, delay: String) -> Shape {
    let (gap, aggregates) = (gap(dice), dice.aggregates());
    appended(move |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", &delay)?;
        by_window(events, session_window(col("ts"), gap()?), &as_strs(&aggregates), false)
    })
}

/// With copies that come near each other, at any distance, or of a part of the columns.
fn duplicates(dice: &mut Dice, delay: String) -> Shape {
    let columns = dice.one_of(&DISTINCT);
    let near = columns.is_empty() && dice.below(2) == 0;
    dice.tell(format!("drop duplicates of {columns:?}{}", if near { ", within the watermark" } else { "" }));
    appended(move |_, inputs| {
        let events = inputs[0].clone().with_watermark("ts", &delay)?;
        let once = if near { without_near_copies(events, columns)? } else { events.drop_duplicates(columns)? };
        // Which of two rows comes first depends on the partitions, so of the others only the key is looked at.
        Ok(if columns.is_empty() { once } else { once.select_columns(columns)? })
    })
}

fn join(dice: &mut Dice, delay: String, ways: &[JoinType]) -> Shape {
    let (how, near) = (dice.one_of(ways), dice.near());
    dice.tell(format!("{how} join"));
    appended(move |ctx, inputs| joined(ctx, inputs, &delay, how, &near))
}

fn joined(ctx: &SessionContext, inputs: &[DataFrame], delay: &str, how: JoinType, near: &str) -> Result<DataFrame> {
    let left = inputs[0].clone().with_watermark("lts", delay)?;
    let right = inputs[1].clone().with_watermark("rts", delay)?;
    join_where(ctx, left, right, how, near)
}

/// Windows over what another operator remembers.
fn chained(dice: &mut Dice, delay: String, first: u64) -> Shape {
    let (fine, coarse) = (dice.window(false), dice.window(true));
    match first {
        0 | 1 => {
            let gap = gap(dice);
            dice.tell(if first == 0 { "windows of windows" } else { "windows of sessions" });
            appended(move |_, inputs| {
                let events = inputs[0].clone().with_watermark("ts", &delay)?;
                let key = if first == 0 { fine.of("ts").into() } else { session_window(col("ts"), gap()?) };
                let parts = by_window(events, key, &["count(*) AS n", "sum(v) AS total", "max(x) AS top"], true)?;
                let sums = ["sum(n) AS n2", "max(total) AS t2", "array_agg(top ORDER BY top) AS tops"];
                by_window(parts, coarse.of("ts"), &sums, false)
            })
        }
        2 => {
            let aggregates = dice.aggregates();
            dice.tell("windows of rows without duplicates");
            appended(move |_, inputs| {
                let events = inputs[0].clone().with_watermark("ts", &delay)?.drop_duplicates(&[])?;
                by_window(events, coarse.of("ts"), &as_strs(&aggregates), false)
            })
        }
        _ => {
            let (how, near) = (dice.one_of(&[JoinType::Inner, JoinType::Left]), dice.near());
            dice.tell(format!("windows of a {how} join"));
            appended(move |ctx, inputs| {
                let pairs = joined(ctx, inputs, &delay, how, &near)?;
                let pairs = pairs.select(vec![col("lts").alias("ts"), col("lk").alias("k"), col("lv"), col("rv")])?;
                by_window(pairs, fine.of("ts"), &["count(*) AS n", "count(rv) AS matched", "sum(lv) AS t"], false)
            })
        }
    }
}

/// Of two streams with watermarks of their own, then windows, or an aggregate that knows no time.
fn union(dice: &mut Dice, delay: String) -> Shape {
    let (window, aggregates, timeless) = (dice.window(true), dice.aggregates(), dice.below(3) == 0);
    dice.tell(if timeless { "union, then one aggregate over all" } else { "union, then windows" });
    let query = move |_: &SessionContext, inputs: &[DataFrame]| {
        let both = inputs[0].clone().with_watermark("ts", &delay)?;
        let both = both.union(inputs[1].clone().with_watermark("ts", "1 minute")?)?;
        match timeless {
            true => grouped(both, vec![], &as_strs(&aggregates)),
            false => by_window(both, window.of("ts"), &as_strs(&aggregates), false),
        }
    };
    match timeless {
        true => (OutputMode::Update, Reading::LastByKey(0), Box::new(query)),
        false => appended(query),
    }
}

/// Runs what a seed draws; the number of rows of its answer.
async fn seed(seed: u64) -> Result<usize, String> {
    let Drawn { job, mut dice } = draw(seed);
    let job = Arc::new(job);
    let world = World::new(&job);
    // Every other seed with state in pieces of a few rows.
    let world = if seed % 20 < 10 { world } else { world.with_small_state() };
    let mut fed = 0;
    let mut ran = Ok(());
    while fed < job.adds() && ran.is_ok() {
        let next = (fed + dice.between(1, 4)).min(job.adds());
        let partitions = dice.between(1, 5);
        dice.tell(format!("adds {fed} to {next} in {partitions} partitions"));
        world.feed(fed..next);
        ran = world.run_alone(partitions, &FaultInjector::disarmed()).await;
        fed = next;
    }
    let expected = job.batch_answer().await;
    let compared = match (ran, &expected) {
        (Err(e), _) => Err(format!("the stream failed: {e}")),
        (_, Err(e)) => Err(format!("the batch failed: {e}")),
        (Ok(()), Ok(expected)) => world.check(expected),
    };
    let again = format!("TIDEWATER_SEED={seed} cargo test --release --test it stream_equals_batch");
    compared.map_err(|e| format!("seed {seed} ({again})\n{}\n{e}", dice.told))?;
    Ok(expected.map_or(0, |rows| rows.iter().map(|rows| rows.num_rows()).sum()))
}

/// All seeds of a kind.
async fn seeds(kind: u64) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let chosen: Vec<u64> = match number("TIDEWATER_SEED") {
        Some(one) => vec![one],
        None => (0..number("TIDEWATER_SEEDS").unwrap_or(1000)).collect(),
    };
    let (mut tried, mut rows, mut failures) = (0, 0, vec![]);
    for seed_of_kind in chosen.into_iter().filter(|seed| seed % KINDS == kind) {
        tried += 1;
        match seed(seed_of_kind).await {
            Ok(answered) => rows += answered,
            Err(e) => failures.push(e),
        }
    }
    println!("stream equals batch, kind {kind}: {tried} seeds, {rows} rows, {} failures", failures.len());
    // The first few tell enough.
    assert!(
        failures.is_empty(),
        "{} of {tried} seeds:\n{}",
        failures.len(),
        failures[..failures.len().min(3)].join("\n\n")
    );
    assert!(rows > 0 || tried < 20, "{tried} seeds answered nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_in_update_mode() {
    seeds(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregates_in_complete_mode() {
    seeds(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tumbling_windows() {
    seeds(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sliding_windows() {
    seeds(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_windows() {
    seeds(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deduplication() {
    seeds(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inner_joins() {
    seeds(6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outer_and_semi_joins() {
    seeds(7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chained_operators() {
    seeds(8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unions() {
    seeds(9).await;
}
