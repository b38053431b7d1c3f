//! Modes over DISTINCT, UNION, LIMIT, subqueries, several aggregations and tables.

use datafusion::functions_aggregate::expr_fn::{count, sum};
use tidewater::testing::assert_same_rows;

use super::*;

fn streams() -> Streams {
    let adds = vec![
        [
            vec![row(1, "a", 1), row(2, "a", 1), row(3, "b", 5), row(4, "", 7)],
            vec![row(1, "b", 2), row(2, "e", 3)],
            vec![row(1, "a", 10)],
        ],
        [vec![row(5, "a", 2), row(6, "c", 5)], vec![row(5, "a", 2), row(6, "", 9)], vec![]],
        [vec![row(7, "b", 5), row(8, "a", -4)], vec![row(7, "e", 3), row(8, "c", 500)], vec![row(7, "b", 20)]],
    ];
    Streams { adds, watermark: false }
}

/// Aggregations, for the inner part of statements.
const BY_K: &str = "(SELECT k, count(*) AS n, sum(v) AS total FROM t GROUP BY k)";
const BY_K_OF_S: &str = "(SELECT k, count(*) AS n, sum(v) AS total FROM s GROUP BY k)";

fn with_parts(sql: &str) -> String {
    sql.replace("{a}", BY_K).replace("{b}", BY_K_OF_S)
}

async fn complete(statements: &[&str]) {
    let statements: Vec<String> = statements.iter().map(|sql| with_parts(sql)).collect();
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    streams().all_answer(OutputMode::Complete, &statements).await;
}

/// The aggregation above remembers the batches before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_mode_above_what_remembers_rows() {
    complete(&[
        "SELECT count(*), sum(v) FROM (SELECT DISTINCT k, v FROM t)",
        "SELECT k, count(*), max(v) FROM (SELECT DISTINCT k, v FROM t) GROUP BY k",
        "SELECT k, count(*) FROM (SELECT k, v FROM t UNION SELECT k, v FROM s) GROUP BY k",
        "SELECT k, sum(v) FROM (SELECT k, v FROM t UNION ALL SELECT k, v FROM s) GROUP BY k",
        "SELECT k, sum(v) FROM (SELECT DISTINCT k, v FROM t UNION ALL SELECT k, v FROM s) GROUP BY k",
        "SELECT count(*) FROM (SELECT * FROM t LIMIT 3)",
        "SELECT count(*) FROM (SELECT * FROM t LIMIT 1 + 2 OFFSET 0)",
        "SELECT count(*) FROM (SELECT * FROM t OFFSET 0)",
        "SELECT count(*), count(DISTINCT k) FROM (SELECT DISTINCT k FROM (SELECT k FROM t UNION ALL SELECT k FROM s))",
        "SELECT t.k, count(*), sum(s.v) FROM t JOIN s ON t.k = s.k GROUP BY t.k",
        "SELECT k, count(*) FROM t WHERE k IN (SELECT k FROM s) GROUP BY k",
        "SELECT w, count(*) FROM (SELECT DISTINCT k, v FROM t) x JOIN d ON x.k = d.id GROUP BY w",
    ])
    .await;
}

/// Where every batch brings the whole answer, it may be asked what any batch may be asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_mode_below_any_question() {
    complete(&[
        "SELECT n, count(*) FROM {a} GROUP BY n",
        "SELECT max(n), sum(total) FROM {a}",
        "SELECT n, count(*) FROM (SELECT n, count(*) AS m FROM {a} GROUP BY n) GROUP BY n",
        "SELECT DISTINCT n FROM {a}",
        "SELECT n FROM {a} UNION SELECT n FROM {b}",
        "SELECT k, n FROM {a} UNION ALL SELECT k, n FROM {b}",
        "SELECT count(*) FROM (SELECT k, n FROM {a} UNION ALL SELECT k, n FROM {b})",
        "SELECT k, n FROM {a} ORDER BY n DESC, k LIMIT 2 OFFSET 1",
        "SELECT k, n FROM {a} ORDER BY n DESC, k LIMIT 1 + 1",
        "SELECT k, n, rank() OVER (ORDER BY n DESC) FROM {a}",
        "SELECT n, count(*) FROM {a} GROUP BY ROLLUP(n)",
        "SELECT DISTINCT ON (n) n, k FROM {a} ORDER BY n, k",
        "SELECT a.k, a.n, b.n FROM {a} a JOIN {b} b ON a.k = b.k",
        "SELECT a.k, a.n, b.n FROM {a} a LEFT JOIN {b} b ON a.k = b.k AND b.n > 1",
        "SELECT a.k, b.k, a.n, b.n FROM {a} a FULL JOIN {b} b ON a.k = b.k",
        "SELECT a.k, b.n FROM {a} a JOIN (SELECT k, count(*) AS n FROM s WHERE v > 100 GROUP BY k) b ON a.k = b.k",
        "SELECT a.k, b.k FROM {a} a, {b} b WHERE a.n < b.n",
        "SELECT k FROM {a} INTERSECT SELECT k FROM {b}",
        "SELECT k FROM {a} EXCEPT SELECT k FROM {b}",
    ])
    .await;
}

/// A join gives rows of the table anew in every batch, whatever it gave before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn complete_mode_beside_a_table() {
    complete(&[
        "SELECT d.id, d.w, a.n FROM d LEFT JOIN {a} a ON d.id = a.k",
        "SELECT d.id, a.k, a.n FROM d FULL JOIN {a} a ON d.id = a.k",
        "SELECT d.id, a.k, a.n FROM {a} a RIGHT JOIN d ON d.id = a.k",
        "SELECT d.id, x.n FROM d, LATERAL (SELECT count(*) AS n FROM t WHERE t.k = d.id) x",
        "SELECT id, w FROM d WHERE id IN (SELECT k FROM {a})",
        "SELECT id, w FROM d WHERE id IN (SELECT k FROM {a} WHERE n > 1) OR w > 50",
        "SELECT id, w FROM d WHERE NOT EXISTS (SELECT 1 FROM {a} a WHERE a.k = d.id)",
        "SELECT id, w FROM d WHERE w < (SELECT count(*) FROM t)",
        "SELECT id, (SELECT count(*) FROM t WHERE t.k = d.id) AS n FROM d",
        "SELECT k, n, (SELECT max(v) FROM t) AS top, (SELECT sum(w) FROM d) AS all_w FROM {a}",
        "SELECT k, n FROM {a} WHERE n > (SELECT avg(n) FROM {b})",
        "SELECT id AS k, 0 AS n FROM d UNION ALL SELECT k, n FROM {a}",
        "SELECT 'all' AS k, count(*) AS n FROM t UNION ALL SELECT 'none', 0",
        "SELECT k, n FROM {a} WHERE k NOT IN (SELECT id FROM d WHERE id IS NOT NULL)",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_are_dropped_below_and_above_an_aggregation() {
    let all = streams();
    let schema = table::schema(&EVENTS).unwrap();
    for above in [false, true] {
        let query = |rows: DataFrame| -> Result<DataFrame> {
            if !above {
                let once = rows.drop_duplicates(&["k", "v"])?.select_columns(&["k", "v"])?;
                return Ok(
                    once.aggregate(vec![col("k")], vec![count(lit(1)).alias("n"), sum(col("v")).alias("total")])?
                );
            }
            let grouped = rows.aggregate(vec![col("k")], vec![count(lit(1)).alias("n")])?;
            Ok(grouped.drop_duplicates(&["n"])?.select_columns(&["n"])?)
        };
        let (source, sink, checkpoint) = (MemorySource::new(Arc::clone(&schema)), MemorySink::new(), memory_store());
        for adds in 1..=all.adds.len() {
            source.add(table::deal(&all.rows(0, adds)[adds - 1], 1).unwrap()).unwrap();
            let ctx = SessionContext::new();
            let stream = query(ctx.read_stream(source.clone()).unwrap()).unwrap();
            let writer = stream.write_stream(sink.clone()).output_mode(OutputMode::Complete);
            finish(writer.checkpoint_store(Arc::clone(&checkpoint)).trigger(Trigger::AvailableNow)).await.unwrap();
            let table = batch_table(&ctx, Arc::clone(&schema), all.rows(0, adds)).unwrap();
            assert_same_rows(&query(table).unwrap().collect().await.unwrap(), &sink.batches());
        }
    }
}

/// Neither WHERE nor a first match asks for what is final.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_that_need_no_final_knowledge() {
    let statements = [
        "SELECT t.k, t.v, s.v FROM t LEFT JOIN s ON t.k = s.k WHERE s.v > 0",
        "SELECT t.k, t.v, s.v FROM t RIGHT JOIN s ON t.k = s.k WHERE t.v > 0",
        "SELECT t.k, t.v, s.v FROM t FULL JOIN s ON t.k = s.k WHERE t.v > 0 AND s.v > 0",
        "SELECT d.id, t.v FROM d LEFT JOIN t ON d.id = t.k WHERE t.v > 0",
        "SELECT k, v FROM t WHERE k IN (SELECT k FROM s)",
        "SELECT k, v FROM t WHERE k IN (SELECT DISTINCT k FROM s)",
        "SELECT k, v FROM t WHERE EXISTS (SELECT 1 FROM s WHERE s.k = t.k AND s.v > t.v)",
        "SELECT t.k, t.v FROM t LEFT SEMI JOIN s ON t.k = s.k",
        "SELECT k FROM t INTERSECT SELECT k FROM s",
        "SELECT k, v FROM t INTERSECT SELECT k, v FROM s",
        "SELECT DISTINCT k FROM t WHERE k IN (SELECT k FROM s) AND v > (SELECT min(w) - 1 FROM d)",
        "SELECT k, v FROM t OFFSET 0",
    ];
    streams().all_answer(OutputMode::Append, &statements).await;
    streams().all_answer(OutputMode::Update, &statements).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_mode_or_another_answers() {
    use OutputMode::{Append, Complete, Update};
    let a = |sql: &str| -> &'static str { Box::leak(with_parts(sql).into_boxed_str()) };
    let cases: &[(OutputMode, &str, &[&str])] = &[
        // Values that an earlier batch gave would stay.
        (Update, a("SELECT DISTINCT n FROM {a}"), &["follow an aggregation", "use complete mode"]),
        (Update, a("SELECT k, n FROM {a} UNION SELECT k, v FROM s"), &["follow an aggregation", "!use "]),
        (Update, a("SELECT k, n FROM {a} UNION SELECT k, n FROM {b}"), &["follow an aggregation", "use complete mode"]),
        (Update, a("SELECT n, count(*) FROM {a} GROUP BY n"), &["follow an aggregation", "use complete mode"]),
        (Update, a("SELECT n FROM {a} LIMIT 2"), &["follow an aggregation", "use complete mode"]),
        (
            Update,
            "SELECT d.id, x.n FROM d, LATERAL (SELECT count(*) AS n FROM t WHERE t.k = d.id) x",
            &["keeps rows of the table", "use complete mode"],
        ),
        (Update, a("SELECT d.id, a.n FROM d LEFT JOIN {a} a ON d.id = a.k"), &["use complete mode"]),
        // The branches keep different batches.
        (Complete, a("SELECT k, v FROM t UNION ALL SELECT k, n FROM {a}"), &["beside an aggregation"]),
        (
            Complete,
            a("SELECT k, v FROM (SELECT DISTINCT k, v FROM t) UNION ALL SELECT k, n FROM {a}"),
            &["beside an aggregation"],
        ),
        (
            Complete,
            a("SELECT count(*) FROM (SELECT k, v FROM t UNION ALL SELECT k, n FROM {a})"),
            &["beside an aggregation"],
        ),
        (Complete, a("SELECT t.k, t.v, b.n FROM t JOIN {b} b ON t.k = b.k"), &["joined with an aggregation"]),
        (
            Complete,
            "SELECT k, v FROM t WHERE v > (SELECT avg(v) FROM t)",
            &["joined with an aggregation", "!write a join"],
        ),
        // No circles: a mode is named if it answers, and only then.
        (Append, "SELECT k, v FROM t ORDER BY v", &["cannot be sorted", "!complete", "!append"]),
        (Complete, "SELECT k, v FROM t ORDER BY v", &["cannot be sorted", "!complete", "!append"]),
        (Append, "SELECT k, count(*) FROM t GROUP BY k ORDER BY k", &["cannot be sorted", "use complete mode"]),
        (Update, "SELECT k, count(*) FROM t GROUP BY k ORDER BY k", &["cannot be sorted", "use complete mode"]),
        (Append, "SELECT k, count(*) FROM t GROUP BY k", &["when a group is final", "use update or complete mode"]),
        (Complete, "SELECT k, v FROM t", &["needs a streaming aggregation", "use append or update mode"]),
        (Update, "SELECT k, v FROM t LIMIT 2", &["limited in update mode", "use append mode"]),
        (Append, "SELECT k, v FROM t OFFSET 2", &["OFFSET", "!mode"]),
        (Complete, "SELECT v, v IN (SELECT w FROM d) FROM t", &["needs a streaming aggregation", "!append"]),
        (
            Update,
            "SELECT approx_distinct(arrow_cast(k, 'Dictionary(Int32, Utf8)')) FROM t",
            &["approx_distinct", "!complete"],
        ),
        (Append, "SELECT count(*) FROM t WHERE v > (SELECT avg(v) FROM s)", &["!write a join"]),
        // What is not a table is not called one, and what is no join to the user neither.
        (Append, "SELECT k, v FROM t UNION ALL SELECT 'x', 1", &["constants", "!a table"]),
        (Append, "SELECT k, v FROM t UNION ALL SELECT id, w FROM d", &["a table"]),
        (Append, "SELECT k FROM t EXCEPT SELECT k FROM s", &["EXCEPT of two streams", "NULL equals NULL"]),
        (
            Append,
            "SELECT t.k, s.v FROM t LEFT JOIN s ON t.k = s.k",
            &["neither input has a watermark", "with_watermark"],
        ),
        (Append, "SELECT k, v FROM t WHERE k NOT IN (SELECT k FROM s)", &["NOT IN", "NOT EXISTS"]),
        (Append, "SELECT k, v FROM t WHERE k NOT IN (SELECT DISTINCT k FROM s)", &["NOT IN", "NOT EXISTS"]),
        (Append, "SELECT k, v FROM t WHERE k NOT IN (SELECT k FROM s LIMIT 5)", &["NOT IN", "NOT EXISTS"]),
        (Append, "SELECT id FROM d WHERE id NOT IN (SELECT DISTINCT k FROM t)", &["NOT IN"]),
        (Append, "SELECT id FROM d WHERE w > (SELECT v FROM t)", &["scalar subquery"]),
        (Append, "SELECT id FROM d WHERE w > (SELECT DISTINCT v FROM t)", &["scalar subquery"]),
        (Append, "SELECT id FROM d WHERE id IN (SELECT k FROM t)", &["nothing remembers", "DISTINCT"]),
        (Append, "SELECT k, rank() OVER (ORDER BY v) FROM t", &["OVER"]),
        (Append, "SELECT DISTINCT ON (k) k, v FROM t", &["DISTINCT ON", "drop_duplicates"]),
    ];
    streams().all_refused(cases).await;
    // What a hint says works.
    streams().answers("SELECT DISTINCT d.id FROM t JOIN d ON d.id = t.k", Append).await.unwrap();
}
