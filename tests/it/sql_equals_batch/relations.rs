//! Statements over more than one relation: joins with tables and between streams, subqueries, set operations, aggregations of
//! aggregations. Most are answered; the rest are refused at the start, which is counted.

use tidewater::prelude::*;

use super::{Dice, KEYS, PREDICATES};
use crate::stateful::Reading;

/// How a stream (`r`) is joined with the table `facts` (`f`): the keys are of different types, with NULL, NaN and both zeros.
const TABLE_CONDITIONS: [&str; 12] = [
    "r.k = f.name",
    "r.v = f.n",
    "r.u = f.n",
    "r.x = f.x",
    "r.d = f.d",
    "r.v = f.d",
    "r.dk = f.name",
    "r.st['a'] = f.name",
    "r.k = f.name AND r.v > f.n",
    "r.k = f.name AND r.v IS NOT DISTINCT FROM f.n",
    "r.k IS NOT DISTINCT FROM f.name",
    "r.v > f.n AND r.b",
];

/// What a row of the stream (`r`) may have to do with the table.
const TABLE_PREDICATES: [&str; 12] = [
    "r.v IN (SELECT n FROM facts)",
    "r.v NOT IN (SELECT n FROM facts WHERE n IS NOT NULL)",
    "r.v NOT IN (SELECT n FROM facts)",
    "EXISTS (SELECT 1 FROM facts f WHERE f.name = r.k)",
    "NOT EXISTS (SELECT 1 FROM facts f WHERE f.name = r.k AND f.n > r.v)",
    "r.v > (SELECT max(n) FROM facts f WHERE f.name = r.k)",
    "r.v > COALESCE((SELECT min(n) FROM facts f WHERE f.name = r.k), 0)",
    "r.v >= (SELECT avg(n) FROM facts)",
    "r.k = ANY (SELECT name FROM facts)",
    "concat(r.k, r.v) IN (SELECT concat(name, n) FROM facts)",
    "r.k IN (SELECT upper(name) FROM facts UNION SELECT name FROM facts)",
    "r.d IN (SELECT d FROM facts f WHERE f.n > 1)",
];

/// How far the times of two streams may be apart, one of them a join's left side `a`, the other its right side `b`.
const NEAR: [&str; 6] = [
    " AND a.ts BETWEEN b.ts - INTERVAL '4 seconds' AND b.ts + INTERVAL '2 seconds'",
    " AND a.ts >= b.ts AND a.ts < b.ts + INTERVAL '3 seconds'",
    " AND b.ts > a.ts - INTERVAL '5 seconds' AND b.ts <= a.ts",
    " AND b.ts - a.ts BETWEEN INTERVAL '-2 seconds' AND INTERVAL '6 seconds'",
    " AND a.ts = b.ts",
    "",
];

const STREAM_KEYS: [&str; 9] = [
    "a.k = b.k",
    "a.v = b.v",
    "a.v = b.u",
    "a.k = b.dk",
    "a.d = b.d",
    "a.x = b.x",
    "a.st['a'] = b.k AND a.b = b.b",
    "a.v + 1 = b.v",
    "COALESCE(a.k, 'none') = COALESCE(b.k, 'none')",
];

type Statement = (String, OutputMode, Reading);

/// A statement that joins the stream with tables.
pub(super) fn with_tables(dice: &mut Dice) -> Statement {
    let rows = dice.rows(true);
    let joined = match dice.below(2) {
        0 => {
            let how =
                dice.one_of(&["JOIN", "LEFT JOIN", "LEFT SEMI JOIN", "LEFT ANTI JOIN", "RIGHT JOIN", "FULL JOIN"]);
            let condition = dice.one_of(&TABLE_CONDITIONS);
            let columns = if how.contains("SEMI") || how.contains("ANTI") {
                "CAST(NULL AS VARCHAR) AS name"
            } else {
                "f.name, f.n, f.x AS fx"
            };
            let filter = dice.one_of(&["", "", " WHERE r.v IS NOT NULL", " WHERE r.b"]);
            format!(
                "SELECT r.k, r.v, r.u, r.d, r.ts, {columns} FROM (SELECT * FROM {rows}) r {how} facts f ON {condition}{filter}"
            )
        }
        _ => {
            let predicate = dice.one_of(&TABLE_PREDICATES);
            let more = dice.one_of(&["", " AND r.v > 0", " OR r.v < 2", " AND NOT r.b"]);
            format!(
                "SELECT r.k, r.v, r.u, r.d, r.ts, CAST(NULL AS VARCHAR) AS name FROM (SELECT * FROM {rows}) r WHERE {predicate}{more}"
            )
        }
    };
    let update = (OutputMode::Update, Reading::LastByKey(1));
    let complete = (OutputMode::Complete, Reading::Rows);
    match dice.below(4) {
        0 => {
            let (mode, reading) = if dice.below(2) == 0 { update } else { complete };
            let sql = format!("SELECT k, count(*) AS n, sum(v) AS total, min(d) AS low FROM ({joined}) j GROUP BY k");
            (sql, mode, reading)
        }
        1 => (format!("SELECT DISTINCT k, u, name FROM ({joined}) j"), OutputMode::Append, Reading::Rows),
        _ => (joined, OutputMode::Append, Reading::Rows),
    }
}

/// A statement that joins two streams, both with watermarks.
pub(super) fn of_streams(dice: &mut Dice) -> Statement {
    let how =
        dice.one_of(&["JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "LEFT SEMI JOIN", "LEFT ANTI JOIN"]);
    let (key, near) = (dice.one_of(&STREAM_KEYS), dice.one_of(&NEAR));
    let more = dice.one_of(&["", "", " AND a.v > b.v", " AND a.b", " AND b.u > 3", " AND a.k <> b.dk"]);
    let other = if dice.below(4) == 0 { "s" } else { "t" };
    let one_side = how.contains("SEMI") || how.contains("ANTI");
    let columns = if one_side { "" } else { ", b.ts AS bts, b.v AS bv, b.k AS bk, b.l AS bl" };
    let then = dice.below(5);
    // What joins later than its window ends is late for the window.
    let near = if then == 0 && near.is_empty() { NEAR[0] } else { near };
    let joined = format!("SELECT a.ts, a.k, a.v, a.st{columns} FROM s a {how} {other} b ON {key}{near}{more}");
    match then {
        0 if !one_side => {
            let sql = format!(
                "SELECT window.start AS w, k, count(*) AS n, sum(bv) AS total FROM ({joined}) j \
                 GROUP BY window(ts, '5 seconds'), k"
            );
            (sql, OutputMode::Append, Reading::Rows)
        }
        1 => {
            let filter =
                dice.one_of(&["a.v IN (SELECT v FROM t)", "EXISTS (SELECT 1 FROM t b WHERE b.k = a.k AND b.v > a.v)"]);
            (format!("SELECT a.ts, a.k, a.v FROM s a WHERE {filter}"), OutputMode::Append, Reading::Rows)
        }
        2 => {
            let sql = format!("SELECT k, count(*) AS n, max(v) AS top FROM ({joined}) j GROUP BY k");
            (sql, OutputMode::Complete, Reading::Rows)
        }
        _ => (joined, OutputMode::Append, Reading::Rows),
    }
}

/// A statement in complete mode, where each batch gives the whole answer.
pub(super) fn complete(dice: &mut Dice) -> Statement {
    let rows = dice.rows(true);
    let (one, other) = (dice.one_of(&["k", "v", "b", "dk", "u"]), dice.one_of(&KEYS));
    let predicate = dice.one_of(&PREDICATES);
    let grouped =
        |key: &str, from: &str| format!("SELECT {key} AS g, count(*) AS n, sum(v) AS total FROM {from} GROUP BY {key}");
    let (a, b) = (grouped(one, &rows), grouped(one, &format!("s WHERE {predicate}")));
    let sql = match dice.below(14) {
        0 => format!("SELECT n, count(*) AS groups, max(total) AS top FROM ({a}) i GROUP BY n"),
        1 => format!("SELECT * FROM ({a}) i ORDER BY n DESC, g, total LIMIT 3"),
        2 => format!("SELECT * FROM ({a}) i ORDER BY g, n LIMIT 2 OFFSET 1"),
        3 => format!("SELECT a.g, a.n, b.n AS bn, b.total FROM ({a}) a LEFT JOIN ({b}) b ON a.g = b.g"),
        4 => format!("SELECT a.g, a.n, b.n AS bn FROM ({a}) a JOIN ({b}) b ON a.n > b.n"),
        5 => format!("{a} UNION ALL {b}"),
        6 => format!("{a} UNION {b}"),
        7 => format!("{a} EXCEPT {b}"),
        8 => format!("{a} INTERSECT {b}"),
        9 => format!("SELECT g, n FROM ({a}) i WHERE n > (SELECT avg(n) FROM ({b}) j)"),
        10 => format!(
            "SELECT {other} AS g, count(*) AS n FROM {rows} GROUP BY {other} HAVING count(*) > 1 AND max(v) > 1"
        ),
        11 => format!("SELECT k, b, count(*) AS n, sum(u) AS total FROM {rows} GROUP BY ROLLUP (k, b)"),
        12 => format!("SELECT f.name, a.n, a.total FROM facts f LEFT JOIN ({}) a ON f.name = a.g", grouped("k", &rows)),
        _ => format!("WITH c AS ({a}) SELECT x.g, x.n, y.total FROM c x JOIN c y ON x.g = y.g WHERE x.n > 0"),
    };
    (sql, OutputMode::Complete, Reading::Rows)
}

/// Set operations and other ways to make rows of rows.
pub(super) fn rows_of_rows(dice: &mut Dice) -> Statement {
    let (rows, others) = (dice.rows(true), dice.rows(true));
    let predicate = dice.one_of(&PREDICATES);
    let sql = match dice.below(9) {
        0 => format!("SELECT k, v, b FROM {rows} UNION SELECT k, v, b FROM {others}"),
        1 => format!("SELECT k, v, b FROM {rows} UNION ALL SELECT dk, u, v > 2 FROM {others} WHERE {predicate}"),
        2 => format!("SELECT k, v FROM {rows} INTERSECT SELECT name, n FROM facts"),
        3 => format!("SELECT k, v FROM {rows} EXCEPT SELECT name, n FROM facts"),
        4 => format!("SELECT k, v FROM {rows} INTERSECT SELECT k, u FROM {others}"),
        5 => format!("SELECT k, v, unnest(l) AS one FROM {rows}"),
        6 => format!(
            "SELECT r.k, r.v, c.n FROM (SELECT * FROM {rows}) r JOIN (VALUES ('a', 1), ('b', 2), (NULL, 3)) AS c(name, n) ON r.k = c.name"
        ),
        7 => format!(
            "SELECT r.k, r.v, c.value AS n FROM (SELECT * FROM {rows}) r CROSS JOIN generate_series(1, 3) AS c WHERE r.v >= c.value"
        ),
        _ => format!(
            "WITH c AS (SELECT k, v, d FROM {rows}), e AS (SELECT * FROM c WHERE v > 0) SELECT k, v FROM c UNION ALL SELECT k, v FROM e"
        ),
    };
    (sql, OutputMode::Append, Reading::Rows)
}
