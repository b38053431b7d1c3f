//! SQL over a stream is the SQL over the table: seeded random statements of the kinds that once went wrong, over columns of
//! many types, cut into random batches with random partitions and restarts, against plain DataFusion over all rows.
//!
//! `TIDEWATER_SEEDS=N` tries more seeds than 1,000, `TIDEWATER_SEED=S` only that one; a failure names its own.

mod relations;

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, DictionaryArray, Float64Array, Int64Array, ListArray, StringArray,
    StructArray, TimestampMicrosecondArray, UInt32Array,
};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type};
use arrow::record_batch::RecordBatch;
use futures::FutureExt;
use tidewater::prelude::*;
use tidewater::testing::FaultInjector;
use tidewater_workspace::events::Lcg;

use crate::stateful::{Input, Job, Query, Reading, World};

/// How many kinds of statements there are. A seed is of the kind that is left when it is divided by this.
const KINDS: u64 = 14;

/// The watermark of a row with this time passes all others: the tenth of January 2030.
const CLOSING_US: i64 = 1_893_456_000_000_000;
const FIRST_US: i64 = 1_704_067_200_000_000;

/// Aggregates that do not depend on the order of rows, of every type, with arguments whose branches differ in type.
/// `min` and `max` of doubles are not among them: DataFusion's take NaN for a number now and then, ours never.
const AGGREGATES: [&str; 38] = [
    "count(*)",
    "count(v)",
    "sum(v)",
    "avg(v)",
    "min(v)",
    "max(v)",
    "sum(x)",
    "avg(x)",
    "sum(d)",
    "avg(d)",
    "min(d)",
    "max(d)",
    "avg(CAST(v AS DECIMAL(9, 2)))",
    "sum(u)",
    "avg(u)",
    "max(u)",
    "corr(v, u)",
    "covar_pop(v, u)",
    "stddev(v)",
    "var_pop(u)",
    "bit_and(v)",
    "bit_or(v)",
    "bit_xor(v)",
    "bool_and(b)",
    "bool_or(b)",
    "min(k)",
    "max(st['a'])",
    "max(CASE WHEN v > 3 THEN 1 ELSE 0.5 END)",
    "sum(CASE WHEN b THEN 0 ELSE v / 4.0 END)",
    "max(CASE WHEN b THEN 1 ELSE k END)",
    "max(COALESCE(v, d))",
    "max(u / 10)",
    "sum(v) FILTER (WHERE b)",
    "count(DISTINCT v)",
    "sum(DISTINCT v)",
    "count(DISTINCT k)",
    "avg(DISTINCT d)",
    "median(v)",
];

/// What may be grouped by.
const KEYS: [&str; 10] =
    ["k", "v", "dk", "u * 2", "st['a']", "CASE WHEN b THEN 1 ELSE 0.5 END", "d", "COALESCE(u, v)", "b", "st"];

const PREDICATES: [&str; 9] = [
    "v > 2",
    "v IS NOT NULL",
    "b",
    "x > 0.0",
    "d < 3.25 OR u > 4",
    "st['n'] > 1",
    "dk <> 'b'",
    "v >= (SELECT min(low) FROM limits)",
    "random() >= 0.0",
];

/// What may be grouped by where the time has a watermark. Rows come in the order of their times, so none is late by its own
/// time; by most of these it would be.
const TIMES: [&str; 14] = [
    "ts",
    "CAST(ts AS DATE)",
    "TRY_CAST(ts AS DATE)",
    "CAST(CAST(ts AS DATE) AS TIMESTAMP)",
    "CAST(ts AS TIMESTAMP(0))",
    "arrow_cast(ts, 'Timestamp(Second, None)')",
    "arrow_cast(ts, 'Timestamp(Nanosecond, Some(\"UTC\"))')",
    "CAST(ts AS VARCHAR)",
    "CAST(ts AS BIGINT)",
    "date_trunc('minute', ts)",
    "date_bin(INTERVAL '4 seconds', ts)",
    "ts - INTERVAL '1 hour'",
    "CASE WHEN b THEN ts ELSE ts - INTERVAL '2 minutes' END",
    "NULLIF(ts, ts)",
];

/// Times of the type of `ts` that a branch of a UNION may give, most of them earlier.
const BRANCHES: [&str; 7] = [
    "ts",
    "ts AS t, k, v FROM s WHERE v > 2 UNION ALL SELECT ts",
    "ts - INTERVAL '1 hour'",
    "date_trunc('hour', ts)",
    "arrow_cast(CAST(ts AS DATE), 'Timestamp(Microsecond, Some(\"UTC\"))')",
    "arrow_cast(arrow_cast(ts, 'Timestamp(Second, None)'), 'Timestamp(Microsecond, Some(\"UTC\"))')",
    "arrow_cast('2020-01-01T00:00:00Z', 'Timestamp(Microsecond, Some(\"UTC\"))')",
];

/// A column of the base table, and what a level may put in its place, under its own name.
const COLUMNS: [(&str, &[&str]); 8] = [
    ("k", &["upper(k)", "concat(k, '!')"]),
    ("v", &["v + 1", "-v", "v * u", "CASE WHEN b THEN v ELSE u END"]),
    ("x", &["x * 2.0", "abs(x)"]),
    ("d", &["d + 1.25", "-d"]),
    ("u", &["u + 1"]),
    ("b", &["NOT b", "v > 1"]),
    ("st", &["named_struct('a', st['a'], 'n', st['n'] + 1)"]),
    ("dk", &["dk"]),
];

struct Dice {
    random: Lcg,
}

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    fn maybe<T>(&mut self, value: T) -> Option<T> {
        (self.below(8) > 0).then_some(value)
    }

    /// The table, within up to three queries that compute some of its columns anew.
    /// Where a closing row must come through, nothing is filtered out.
    fn rows(&mut self, filtered: bool) -> String {
        let mut from = "s".to_owned();
        for level in 0..self.below(4) {
            let mut columns = vec!["ts".to_owned(), "l".to_owned()];
            for (name, replacements) in COLUMNS {
                columns.push(match self.below(3) {
                    0 => format!("{} AS {name}", self.one_of(replacements)),
                    _ => name.to_owned(),
                });
            }
            let filter = match filtered && self.below(2) == 0 {
                true => format!(" WHERE {}", self.one_of(&PREDICATES)),
                false => String::new(),
            };
            from = format!("(SELECT {} FROM {from}{filter}) l{level}", columns.join(", "));
        }
        from
    }

    fn aggregates(&mut self) -> String {
        let drawn: Vec<String> = (0..=self.below(4)).map(|i| format!("{} AS a{i}", self.one_of(&AGGREGATES))).collect();
        drawn.join(", ")
    }

    /// One or two keys, by number.
    fn keys(&mut self) -> Vec<&'static str> {
        let first = self.below(KEYS.len());
        match self.below(3) {
            0 => vec![KEYS[first], KEYS[(first + 1 + self.below(KEYS.len() - 1)) % KEYS.len()]],
            _ => vec![KEYS[first]],
        }
    }

    fn batch(&mut self, rows: usize, at: &mut i64) -> RecordBatch {
        let mut times = vec![];
        for _ in 0..rows {
            *at += self.below(3_000_000) as i64;
            times.push(self.maybe(*at));
        }
        let mut each = |dice: &mut dyn FnMut(&mut Dice) -> usize| (0..rows).map(|_| dice(self)).collect::<Vec<_>>();
        let numbers = each(&mut |dice| dice.below(12));
        let keys = each(&mut |dice| dice.below(4));
        let some = each(&mut |dice| dice.below(8));
        let halves = each(&mut |dice| dice.below(9));
        let key = |i: usize| ["a", "b", "c", "d"][keys[i]];
        let known = |i: usize, shift: usize| !(some[i] + shift).is_multiple_of(8);
        let all = 0..rows;
        let k: StringArray = all.clone().map(|i| known(i, 0).then(|| key(i))).collect();
        let v: Int64Array = all.clone().map(|i| known(i, 1).then(|| numbers[i] as i64 - 3)).collect();
        // Zeros of both signs; quarters, whose sums are exact.
        let x: Float64Array = all
            .clone()
            .map(|i| known(i, 2).then(|| [0.0, -0.0, 0.25, 1.5, -2.75, 8.0, f64::NAN, f64::INFINITY, 3.5][halves[i]]))
            .collect();
        let d: Decimal128Array = all.clone().map(|i| known(i, 3).then(|| numbers[i] as i128 * 75 - 200)).collect();
        let d = d.with_precision_and_scale(12, 2).unwrap();
        let u: UInt32Array = all.clone().map(|i| known(i, 4).then(|| numbers[i] as u32)).collect();
        let b: BooleanArray = all.clone().map(|i| known(i, 5).then(|| numbers[i] % 2 == 0)).collect();
        let dk: DictionaryArray<Int32Type> = all.clone().map(|i| known(i, 6).then(|| key(i))).collect();
        let l = ListArray::from_iter_primitive::<Int64Type, _, _>(
            all.clone().map(|i| known(i, 7).then(|| (0..keys[i]).map(|n| Some(n as i64)).collect::<Vec<_>>())),
        );
        let st = StructArray::from(vec![
            (Arc::new(Field::new("a", DataType::Utf8, true)), Arc::new(k.clone()) as ArrayRef),
            (Arc::new(Field::new("n", DataType::Int64, true)), Arc::new(v.clone()) as ArrayRef),
        ]);
        let ts = TimestampMicrosecondArray::from(times).with_timezone("UTC");
        let columns: [(&str, ArrayRef); 10] = [
            ("ts", Arc::new(ts)),
            ("k", Arc::new(k)),
            ("v", Arc::new(v)),
            ("x", Arc::new(x)),
            ("d", Arc::new(d)),
            ("u", Arc::new(u)),
            ("b", Arc::new(b)),
            ("dk", Arc::new(dk)),
            ("l", Arc::new(l)),
            ("st", Arc::new(st)),
        ];
        RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
    }

    /// Rows, and so many behind them that close all that waits.
    fn input(&mut self, closing: usize) -> Input {
        let mut at = FIRST_US;
        let sizes: Vec<usize> = (0..=self.below(5)).map(|_| self.below(14)).collect();
        let mut adds: Vec<RecordBatch> = sizes.into_iter().map(|rows| self.batch(rows, &mut at)).collect();
        let closing = self.batch(closing, &mut at);
        let mut columns = closing.columns().to_vec();
        let times = vec![CLOSING_US; closing.num_rows()];
        columns[0] = Arc::new(TimestampMicrosecondArray::from(times).with_timezone("UTC"));
        adds.push(RecordBatch::try_new(closing.schema(), columns).unwrap());
        Input { schema: closing.schema(), adds }
    }

    /// A statement of this kind, the mode it runs in, and how its answer is read.
    fn statement(&mut self, kind: u64) -> (String, OutputMode, Reading) {
        let (rows, aggregates) = (self.rows(kind < 6), self.aggregates());
        let mode = self.one_of(&[OutputMode::Update, OutputMode::Complete]);
        let reading = |keys| if mode == OutputMode::Update { Reading::LastByKey(keys) } else { Reading::Rows };
        match kind {
            // Over all rows, of which none may pass.
            0 => {
                let filter = self.one_of(&["", " WHERE v > 4", " WHERE v > 100", " WHERE x > 1.0"]);
                (format!("SELECT {aggregates} FROM {rows}{filter}"), mode, reading(0))
            }
            1 => {
                let keys = self.keys();
                let named: Vec<String> = keys.iter().enumerate().map(|(i, key)| format!("{key} AS g{i}")).collect();
                let sql = format!("SELECT {}, {aggregates} FROM {rows} GROUP BY {}", named.join(", "), keys.join(", "));
                (sql, mode, reading(keys.len()))
            }
            // Above what remembers rows, every batch gives the whole answer.
            2 => {
                let inner = match self.below(3) {
                    0 => format!("SELECT DISTINCT k, v, u, b, d FROM {rows}"),
                    1 => format!("SELECT k, v, u, b, d FROM {rows} UNION ALL SELECT k, v, u, b, d FROM s WHERE v > 2"),
                    _ => format!("SELECT k, v, u, b, d FROM {rows} LIMIT 1000"),
                };
                let sql = format!(
                    "SELECT k, count(*) AS n, sum(v) AS total, max(u) AS top, avg(d) AS mean FROM ({inner}) i GROUP BY k"
                );
                (sql, OutputMode::Complete, Reading::Rows)
            }
            3 => {
                let filter = self.one_of(&PREDICATES);
                let sql = format!("SELECT st['a'] AS sa, v, st['n'] + v AS n, d, x, dk, l FROM {rows} WHERE {filter}");
                (sql, OutputMode::Append, Reading::Rows)
            }
            4 => {
                let sql = format!(
                    "SELECT r.k, r.v + (SELECT max(high) FROM limits) AS v, limits.name FROM (SELECT * FROM {rows}) r \
                     JOIN limits ON r.k = limits.name WHERE r.v > (SELECT min(low) FROM limits)"
                );
                (sql, OutputMode::Append, Reading::Rows)
            }
            5 => (
                format!("SELECT DISTINCT k, dk, b, st['a'] AS sa, u * 2 AS u2 FROM {rows}"),
                OutputMode::Append,
                Reading::Rows,
            ),
            6 => {
                let key = self.one_of(&["k", "CASE WHEN b THEN 1 ELSE 0.5 END", "dk", "u * 2"]);
                let sql = format!(
                    "SELECT session_window.start AS w0, session_window.end AS w1, {key} AS g, {aggregates} FROM {rows} \
                     GROUP BY session_window(ts, '4 seconds'), {key}"
                );
                (sql, OutputMode::Append, Reading::Rows)
            }
            7 => {
                let having =
                    self.one_of(&["", " HAVING count(*) > 1", " HAVING max(CASE WHEN b THEN 1 ELSE 0.5 END) > 0.7"]);
                let sql = format!(
                    "SELECT window.start AS w0, k, {aggregates} FROM {rows} GROUP BY window(ts, '6 seconds'), k{having}"
                );
                (sql, OutputMode::Append, Reading::Rows)
            }
            // What is computed from an event time is none.
            8 => {
                let key = self.one_of(&TIMES);
                let sql = match self.below(3) {
                    0 => format!("SELECT {key} AS g, k, {aggregates} FROM {rows} GROUP BY {key}, k"),
                    1 => format!(
                        "SELECT g, k, count(*), sum(v) FROM (SELECT {key} AS g, k, v FROM {rows}) i GROUP BY g, k"
                    ),
                    _ => {
                        return (
                            format!("SELECT DISTINCT {key} AS g, k FROM {rows}"),
                            OutputMode::Append,
                            Reading::Rows,
                        );
                    }
                };
                (sql, mode, reading(2))
            }
            10 => relations::with_tables(self),
            11 => relations::of_streams(self),
            12 => relations::complete(self),
            13 => relations::rows_of_rows(self),
            // A UNION has event times where every branch has.
            _ => {
                let (one, other) = (self.one_of(&BRANCHES), self.one_of(&BRANCHES));
                let both = format!("SELECT {one} AS t, k, v FROM s UNION ALL SELECT {other} AS t, k, v FROM {rows}");
                let sql = match self.below(3) {
                    0 => format!("SELECT t, k, count(*), sum(v), min(v) FROM ({both}) u GROUP BY t, k"),
                    1 => {
                        let sql = format!(
                            "SELECT window.start AS w, k, count(*), sum(v) FROM ({both}) u \
                             GROUP BY window(t, '6 seconds'), k"
                        );
                        return (sql, mode, reading(2));
                    }
                    _ => return (format!("SELECT DISTINCT t, k FROM ({both}) u"), OutputMode::Append, Reading::Rows),
                };
                (sql, mode, reading(2))
            }
        }
    }
}

/// A table with a name twice, NULL in every column, NaN and a zero that is negative.
fn facts() -> Result<RecordBatch> {
    let d = Decimal128Array::from(vec![Some(175), None, Some(-200), Some(400), Some(25), None]);
    let columns: [(&str, ArrayRef); 4] = [
        ("name", Arc::new(StringArray::from(vec![Some("a"), Some("b"), None, Some("a"), Some("d!"), Some("B")]))),
        ("n", Arc::new(Int64Array::from(vec![Some(1), Some(4), Some(2), None, Some(7), Some(1)]))),
        ("x", Arc::new(Float64Array::from(vec![Some(0.0), Some(f64::NAN), Some(1.5), None, Some(-2.75), Some(-0.0)]))),
        ("d", Arc::new(d.with_precision_and_scale(12, 2)?)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true)))?)
}

/// The statement over a stream or a table.
fn query(sql: String, timed: bool) -> Query {
    Box::new(move |ctx, inputs| {
        let rows = if timed { inputs[0].clone().with_watermark("ts", "3 seconds")? } else { inputs[0].clone() };
        ctx.register_table("s", rows.into_view())?;
        if let Some(other) = inputs.get(1) {
            ctx.register_table("t", other.clone().with_watermark("ts", "5 seconds")?.into_view())?;
        }
        let limits = RecordBatch::try_from_iter([
            ("name", Arc::new(StringArray::from(vec!["a", "b", "A"])) as ArrayRef),
            ("low", Arc::new(Int64Array::from(vec![1, 2, 0])) as ArrayRef),
            ("high", Arc::new(Int64Array::from(vec![5, 7, 9])) as ArrayRef),
        ])?;
        ctx.register_batch("limits", limits)?;
        ctx.register_batch("facts", facts()?)?;
        // Nothing of it waits: all is in memory.
        ctx.streaming_sql(&sql).now_or_never().ok_or_else(|| Error::invalid("planning waits for something"))?
    })
}

/// What came of a seed.
enum Tried {
    /// So many rows, in stream and batch.
    Equal(usize),
    /// A stream cannot answer it, and why.
    Refused(String),
    /// A batch cannot either.
    NotCompared,
}

/// Runs what a seed draws.
async fn seed(seed: u64) -> Result<Tried, String> {
    let mut dice = Dice { random: Lcg::new(seed + 7_000_000) };
    // Of those that a join reads, some are filtered out before their time is seen.
    let inputs = if seed % KINDS == 11 { vec![dice.input(24), dice.input(24)] } else { vec![dice.input(1)] };
    let (sql, mode, reading) = dice.statement(seed % KINDS);
    let timed = (6..12).contains(&(seed % KINDS)) && seed % KINDS != 10;
    let again = format!("TIDEWATER_SEED={seed} cargo test --release --test it sql_equals_batch");
    let said = |e: String| format!("seed {seed} ({again})\n{mode}: {sql}\n{e}");
    let name = format!("seed {seed}");
    let job = Arc::new(Job { name, mode, reading, inputs, query: query(sql.clone(), timed), equals_batch: true });
    let expected = match job.batch_answer().await {
        Ok(expected) => expected,
        // DataFusion names a column twice where `avg` comes twice over one argument, or where it makes a join of IN within OR;
        // such a statement has no answer to compare.
        Err(e) if ["duplicate", "unique expression names"].iter().any(|why| e.to_string().contains(why)) => {
            println!("{}", said(format!("not compared, the batch fails: {e}")));
            return Ok(Tried::NotCompared);
        }
        Err(e) => return Err(said(format!("the batch failed: {e}"))),
    };
    let world = World::new(&job);
    let mut fed = 0;
    while fed < job.adds() {
        let next = (fed + 1 + dice.below(3)).min(job.adds());
        world.feed(fed..next);
        let partitions = 1 + dice.below(4);
        match world.run_alone(partitions, &FaultInjector::disarmed()).await {
            Ok(()) => {}
            Err(e) if fed == 0 && e.kind() == ErrorKind::Unsupported => return Ok(Tried::Refused(said(e.to_string()))),
            Err(e) => return Err(said(format!("the stream failed: {e}"))),
        }
        fed = next;
    }
    world.check(&expected).map_err(said)?;
    Ok(Tried::Equal(expected.iter().map(RecordBatch::num_rows).sum()))
}

/// All seeds of a kind.
async fn seeds(kind: u64) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let chosen: Vec<u64> = match number("TIDEWATER_SEED") {
        Some(one) => vec![one],
        None => (0..number("TIDEWATER_SEEDS").unwrap_or(1000)).collect(),
    };
    let (mut tried, mut rows, mut refused, mut failures) = (0, 0, 0, vec![]);
    for seed_of_kind in chosen.into_iter().filter(|seed| seed % KINDS == kind) {
        tried += 1;
        match seed(seed_of_kind).await {
            Ok(Tried::Equal(answered)) => rows += answered,
            Ok(Tried::Refused(why)) => {
                println!("{why}");
                refused += 1;
            }
            Ok(Tried::NotCompared) => {}
            Err(e) => failures.push(e),
        }
    }
    println!(
        "SQL equals batch, kind {kind}: {tried} seeds, {rows} rows, {refused} refused, {} failures",
        failures.len()
    );
    assert!(refused == 0 || kind >= 10, "statements of this kind were all answered before");
    assert!(
        failures.is_empty(),
        "{} of {tried} seeds:\n{}",
        failures.len(),
        failures[..failures.len().min(4)].join("\n\n")
    );
    assert!(rows > 0 || tried < 20, "{tried} seeds answered nothing");
}

macro_rules! kinds {
    ($($name:ident $kind:literal)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                seeds($kind).await;
            }
        )*
    };
}

kinds! {
    aggregates_over_all_rows 0
    aggregates_by_keys_of_many_types 1
    complete_answers_above_distinct_union_and_limit 2
    computed_columns_and_structs 3
    scalar_subqueries_and_tables 4
    distinct_rows 5
    sessions_with_mixed_types 6
    windows_with_mixed_types 7
    groups_by_computed_times 8
    unions_of_times 9
    joins_and_subqueries_with_tables 10
    joins_of_streams 11
    complete_answers_of_all_shapes 12
    rows_of_rows 13
}
