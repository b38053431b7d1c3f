//! Event time through several operators: what stands between them, rows without time, and joins that do not say when a row
//! is final.

use super::*;

fn streams() -> Streams {
    let adds = vec![
        [
            vec![row(1, "a", 1), row(2, "b", 2), row(-1, "a", 3), row(3, "", 4)],
            vec![row(3, "a", 10), row(-1, "b", 11), row(4, "", 12)],
            vec![row(5, "a", 100), row(-1, "a", 101)],
        ],
        [
            vec![row(12, "a", 5), row(14, "c", 6), row(25, "a", 7)],
            vec![row(13, "c", 13), row(16, "a", 14), row(26, "d", 15)],
            vec![row(17, "c", 102), row(27, "a", 103), row(29, "d", 104)],
        ],
        [vec![], vec![], vec![]],
        [closing(), closing(), closing()],
    ];
    Streams { adds, watermark: true }
}

/// Rows that an earlier join padded, and rows without time, match nothing and come out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outer_joins_in_a_row() {
    let near =
        |of: &str, to: &str| format!("{of}.k = {to}.k AND {to}.ts BETWEEN {of}.ts AND {of}.ts + INTERVAL '5 seconds'");
    let (ts, sr) = (near("t", "s"), near("s", "r"));
    let select = "SELECT t.ts, t.k, t.v, s.ts AS sts, s.v AS sv, r.ts AS rts, r.v AS rv";
    let statements = [
        format!("{select} FROM t LEFT JOIN s ON {ts} LEFT JOIN r ON {sr}"),
        format!("{select} FROM t LEFT JOIN s ON {ts} FULL JOIN r ON {sr}"),
        format!("{select} FROM t FULL JOIN s ON {ts} LEFT JOIN r ON {sr}"),
        format!("{select} FROM t RIGHT JOIN s ON {ts} LEFT JOIN r ON {sr}"),
        format!("{select} FROM t LEFT JOIN s ON t.k = s.k AND t.ts = s.ts LEFT JOIN r ON s.k = r.k AND s.ts = r.ts"),
        format!("SELECT t.ts, t.k, t.v FROM t LEFT JOIN s ON {ts} LEFT ANTI JOIN r ON {sr}"),
        format!("SELECT t.ts, t.k, t.v FROM t LEFT ANTI JOIN s ON {ts}"),
        format!("SELECT t.ts, t.k, t.v FROM t WHERE NOT EXISTS (SELECT 1 FROM s WHERE {ts})"),
        format!("SELECT t.ts, t.k, t.v FROM t LEFT SEMI JOIN s ON {ts}"),
    ];
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    streams().all_answer(OutputMode::Append, &statements).await;
}

/// What stands between a grouping by windows and the next use of their time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_keep_their_time() {
    let windows = "SELECT window(ts, '10 seconds') AS w, k, count(*) AS n, sum(v) AS total FROM t \
                   GROUP BY window(ts, '10 seconds'), k";
    let coarse = |from: &str, time: &str| {
        format!(
            "SELECT p['start'] AS ws, p['end'] AS we, n FROM (SELECT window({time}, '20 seconds') AS p, sum(n) AS n \
             FROM {from} GROUP BY window({time}, '20 seconds'))"
        )
    };
    let statements = [
        coarse(&format!("({windows})"), "window_time(w)"),
        coarse(&format!("({windows})"), "w"),
        coarse(&format!("({windows} HAVING count(*) > 1)"), "window_time(w)"),
        coarse(&format!("(SELECT * FROM ({windows}) WHERE n > 1 AND k IS NOT NULL)"), "window_time(w)"),
        coarse(
            &format!("(SELECT x AS y, n FROM (SELECT w AS x, n FROM ({windows}) AS p WHERE n < 9) AS q)"),
            "window_time(y)",
        ),
        coarse(&format!("(SELECT window_time(w) AS wt, n + 0 AS n FROM ({windows}) WHERE total > 0)"), "wt"),
        coarse(
            &format!("(SELECT wt AS again, n FROM (SELECT window_time(w) AS wt, n FROM ({windows})) WHERE n > 0)"),
            "again",
        ),
        coarse(&format!("(SELECT DISTINCT window_time(w) AS wt, n FROM ({windows}))"), "wt"),
        format!("SELECT e, sum(n) AS n FROM (SELECT w['end'] AS e, n FROM ({windows}) WHERE n > 0) GROUP BY e"),
        format!("SELECT b, sum(n) AS n FROM (SELECT w['start'] AS b, n FROM ({windows})) GROUP BY b"),
        format!("SELECT w['start'] AS b, max(total) AS top FROM ({windows}) GROUP BY w['start'] HAVING max(total) > 0"),
        format!("SELECT w['start'] AS b, n FROM (SELECT w, sum(n) AS n FROM ({windows}) GROUP BY w)"),
    ];
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    streams().all_answer(OutputMode::Append, &statements).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn windows_are_joined_on_their_bounds() {
    let windows = |of: &str| {
        format!(
            "(SELECT window(ts, '10 seconds') AS w, k, count(*) AS n FROM {of} GROUP BY window(ts, '10 seconds'), k)"
        )
    };
    let (a, b) = (windows("t"), windows("s"));
    let mut statements = vec![];
    for how in ["JOIN", "LEFT JOIN", "FULL JOIN"] {
        for on in ["a.w['start'] = b.w['start']", "a.w['end'] = b.w['end']", "a.w = b.w"] {
            statements.push(format!(
                "SELECT a.w['start'] AS ab, a.n AS an, b.w['start'] AS bb, b.n AS bn FROM {a} a {how} {b} b ON {on} AND a.k = b.k"
            ));
        }
        statements.push(format!(
            "SELECT ab, an, bb, bn FROM (SELECT w['start'] AS ab, k, n AS an FROM {a}) a {how} \
             (SELECT w['start'] AS bb, k, n AS bn FROM {b}) b ON ab = bb AND a.k = b.k"
        ));
    }
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    streams().all_answer(OutputMode::Append, &statements).await;
}

/// What an outer join lacks is said of its own condition.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_condition_that_is_not_understood_is_named() {
    use OutputMode::Append;
    let on = |condition: &str| -> &'static str {
        Box::leak(format!("SELECT t.k, s.v FROM t LEFT JOIN s ON t.k = s.k {condition}").into_boxed_str())
    };
    let cases: &[(OutputMode, &str, &[&str])] = &[
        (Append, on(""), &["does not compare the event times `ts` and `ts`", "!with_watermark"]),
        (Append, on("AND s.ts <= t.ts + INTERVAL '1 month'"), &["a month has no fixed length", "!with_watermark"]),
        (Append, on("AND date_trunc('hour', s.ts) <= t.ts"), &["date_trunc", "!with_watermark"]),
        (Append, on("AND (s.ts <= t.ts OR s.v > 0)"), &["of an OR only one part has to hold"]),
        (Append, on("AND s.ts <> t.ts"), &["rules out single times"]),
        (Append, on("AND s.ts >= t.ts"), &["it sets no latest `s.ts` for a left row"]),
        (
            Append,
            "SELECT a.n, b.n FROM (SELECT session_window(ts, '5 seconds') AS w, k, count(*) AS n FROM t \
             GROUP BY session_window(ts, '5 seconds'), k) a LEFT JOIN (SELECT session_window(ts, '5 seconds') AS w, k, \
             count(*) AS n FROM s GROUP BY session_window(ts, '5 seconds'), k) b ON a.k = b.k AND a.w['start'] = b.w['start']",
            &["the start of a session", "!with_watermark"],
        ),
        (Append, "SELECT ts, k FROM t EXCEPT SELECT ts, k FROM s", &["EXCEPT of two streams", "NULL equals NULL"]),
    ];
    streams().all_refused(cases).await;
}

/// A late row of a side without a watermark would come out as one without a match.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_match_need_both_watermarks() {
    let near = "lk = rk AND rts BETWEEN lts AND lts + INTERVAL '5 seconds'";
    let schemas = [crate::stateful::arrivals::LEFT, crate::stateful::arrivals::RIGHT];
    let schemas = schemas.map(|columns| table::schema(&columns).unwrap());
    use JoinType::{Full, Inner, Left, LeftAnti, LeftSemi, Right, RightAnti};
    for (how, on, left, right, accepted) in [
        (Left, near, true, true, true),
        (Left, near, false, true, false),
        (Left, near, true, false, false),
        (LeftAnti, near, false, true, false),
        (LeftAnti, near, true, true, true),
        (Right, near, true, false, false),
        (RightAnti, near, true, false, false),
        (Full, near, true, false, false),
        (Full, near, true, true, true),
        (Full, "lk = rk AND rts >= lts", true, true, false),
        (Left, "lk = rk AND lts = rts", false, true, false),
        (Left, "lk = rk AND lts = rts", true, true, true),
        // These give out nothing that a later row could take back.
        (LeftSemi, near, false, true, true),
        (LeftSemi, "lk = rk", false, false, true),
        (Inner, near, false, true, true),
    ] {
        let ctx = SessionContext::new();
        let mut sides = vec![];
        for (schema, (time, marked)) in schemas.iter().zip([("lts", left), ("rts", right)]) {
            let side = ctx.read_stream(MemorySource::new(Arc::clone(schema))).unwrap();
            sides.push(if marked { side.with_watermark(time, "0 seconds").unwrap() } else { side });
        }
        let (l, r) = (sides.remove(0), sides.remove(0));
        let condition = ctx.parse_sql_expr(on, &l.schema().join(r.schema()).unwrap()).unwrap();
        let joined = l.join_on(r, how, [condition]).unwrap();
        let writer = joined.write_stream(MemorySink::new()).trigger(Trigger::AvailableNow);
        let started = finish(writer).await;
        assert_eq!(started.is_ok(), accepted, "{how} on {on}, {left} {right}: {:?}", started.err());
    }
}

/// Where one side's key is event time only, late rows of the other side are counted: what they could match is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_late_by_their_key_are_counted() {
    let schema = table::schema(&EVENTS).unwrap();
    let (left, right) = (MemorySource::new(Arc::clone(&schema)), MemorySource::new(Arc::clone(&schema)));
    let (sink, checkpoint) = (MemorySink::new(), memory_store());
    let mut late = 0;
    for (l, r) in [
        (vec![row(10, "a", 1)], vec![row(10, "a", 2)]),
        (vec![row(50, "b", 3)], vec![row(60, "b", 4)]),
        (vec![row(10, "a", 5), row(70, "c", 6)], vec![row(70, "c", 7)]),
    ] {
        left.add(vec![table::rows(&schema, &Value::Array(l)).unwrap()]).unwrap();
        right.add(vec![table::rows(&schema, &Value::Array(r)).unwrap()]).unwrap();
        let ctx = SessionContext::new();
        ctx.register_table("t", ctx.read_stream(left.clone()).unwrap().into_view()).unwrap();
        let marked = ctx.read_stream(right.clone()).unwrap().with_watermark("ts", "0 seconds").unwrap();
        ctx.register_table("s", marked.into_view()).unwrap();
        let sql = "SELECT t.v, s.v AS sv FROM t JOIN s ON t.k = s.k AND t.ts = s.ts";
        let writer = ctx.streaming_sql(sql).await.unwrap().write_stream(sink.clone());
        let writer = writer.checkpoint_store(Arc::clone(&checkpoint)).trigger(Trigger::AvailableNow);
        let query = finish(writer).await.unwrap();
        for progress in query.recent_progress() {
            let progress: Value = serde_json::from_str(&progress.json()).unwrap();
            late += progress["stateOperators"][0]["numRowsDroppedByWatermark"].as_u64().unwrap_or(0);
        }
    }
    assert_eq!(late, 1);
    let rows: usize = sink.batches().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, 2, "the pairs of 10 s and of 70 s");
}
