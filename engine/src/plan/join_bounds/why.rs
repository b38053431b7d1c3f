//! Explains to the author of a join why its condition does not determine when a row is final.

use arrow::datatypes::DataType;
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Join, LogicalPlan, Operator};
use datafusion::scalar::ScalarValue;

use super::check::Kept;
use super::time::{Time, is_utc};
use crate::plan::node::watermark::WatermarkNode;
use crate::watermark::event_time_metadata::is_event_time;

/// Why the rows of this side are never final, and what to do about it.
pub(super) fn why_never_final(join: &Join, kept: Kept) -> (String, String) {
    let (left, right) = (join.left.schema(), join.right.schema());
    let (left_time, right_time) = (event_times(left), event_times(right));
    let (l, r) = (name_of_time(&join.left, &left_time), name_of_time(&join.right, &right_time));
    let (own, other, other_name) = match kept {
        Kept::Left => (&l, &r, "right"),
        Kept::Right => (&r, &l, "left"),
    };
    let missing = match (own, other) {
        (None, None) => ("neither input has a watermark".to_owned(), "both inputs".to_owned()),
        (Some(_), None) => (format!("the {other_name} input has no watermark"), format!("the {other_name} input, too")),
        (None, Some(_)) => (
            format!("the {kept} input has no watermark, so a late row of it would come out as one without a match"),
            format!("the {kept} input, too"),
        ),
        (Some(_), Some(_)) => Default::default(),
    };
    let (Some(l), Some(r), Some(own), Some(other)) = (&l, &r, own, other) else {
        let (why, input) = missing;
        let hint =
            format!("call `with_watermark` on {input}, and bound the times in the join's condition, such as {EXAMPLE}");
        return (why, hint);
    };
    let are_windows = [(left, &left_time), (right, &right_time)].into_iter().any(|(schema, times)| {
        times
            .iter()
            .any(|&time| schema.fields().get(time).is_some_and(|f| matches!(f.data_type(), DataType::Struct(_))))
    });
    let hint = match are_windows {
        true => format!("join on the same windows of both, `{l} = {r}`, or compare their `window_time`"),
        false => format!(
            "compare them in the join's condition, such as `{other} BETWEEN {own} AND {own} + INTERVAL '10 minutes'`, or join \
             on equal event times, or on the same windows of both"
        ),
    };
    let equalities = join.on.iter().map(|(left, right)| {
        Expr::BinaryExpr(BinaryExpr::new(Box::new(left.clone()), Operator::Eq, Box::new(right.clone())))
    });
    let conditions: Vec<Expr> = join.filter.iter().flat_map(split_conjunction).cloned().chain(equalities).collect();
    let speaks_of_times = |condition: &Expr| {
        let mentions = |schema: &DFSchema, times: &[usize]| {
            condition
                .column_refs()
                .into_iter()
                .any(|c| schema.maybe_index_of_column(c).is_some_and(|c| times.contains(&c)))
        };
        // A condition on one of them alone may still look like a bound to the one who wrote it.
        match (mentions(left, &left_time), mentions(right, &right_time)) {
            (true, true) => 2,
            (false, false) => 0,
            _ => 1,
        }
    };
    let Some(condition) = conditions.iter().filter(|c| speaks_of_times(c) > 0).max_by_key(|c| speaks_of_times(c))
    else {
        return (format!("its condition does not compare the event times `{l}` and `{r}`"), hint);
    };
    let shown = condition.human_display();
    let why = not_understood(condition, left, right).unwrap_or_else(|| match speaks_of_times(condition) {
        2 => format!("it sets no latest `{other}` for a {kept} row"),
        _ => format!("it does not compare the event times `{l}` and `{r}`"),
    });
    (format!("`{shown}` does not say so, as {why}"), hint)
}

const EXAMPLE: &str = "`r.time BETWEEN l.time AND l.time + INTERVAL '10 minutes'`";

/// The event time of an input: one of its columns, or the one that a watermark is on further down.
fn name_of_time(plan: &LogicalPlan, times: &[usize]) -> Option<String> {
    let columns = plan.schema().columns();
    if let Some(column) = times.first().and_then(|&time| columns.get(time)) {
        return Some(column.flat_name());
    }
    let mut found = None;
    // The closure never fails.
    let _ = plan.apply(|node| {
        if let LogicalPlan::Extension(extension) = node
            && let Some(watermark) = extension.node.as_any().downcast_ref::<WatermarkNode>()
        {
            found = Some(watermark.column.name.clone());
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

fn event_times(schema: &DFSchema) -> Vec<usize> {
    schema.fields().iter().enumerate().filter(|(_, field)| is_event_time(field)).map(|(column, _)| column).collect()
}

/// What about a condition is of another form than a comparison of times that are shifted by fixed intervals.
fn not_understood(condition: &Expr, left: &DFSchema, right: &DFSchema) -> Option<String> {
    let compared: Vec<&Expr> = match condition {
        Expr::Alias(alias) => return not_understood(&alias.expr, left, right),
        Expr::BinaryExpr(binary) => match binary.op {
            Operator::Or => return Some("of an OR only one part has to hold".to_owned()),
            Operator::NotEq | Operator::IsDistinctFrom => return Some("it rules out single times only".to_owned()),
            Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq | Operator::Eq => {
                vec![&binary.left, &binary.right]
            }
            _ => return Some("it does not compare times".to_owned()),
        },
        Expr::Between(between) if !between.negated => vec![&between.expr, &between.low, &between.high],
        _ => return Some("it does not compare times".to_owned()),
    };
    compared.into_iter().find_map(|side| why_no_time(side, left, right))
}

/// What in an expression keeps it from being a column's time plus a fixed interval.
fn why_no_time(expr: &Expr, left: &DFSchema, right: &DFSchema) -> Option<String> {
    let is_time = |expr: &Expr| {
        [left, right].into_iter().any(|schema| Time::of(expr, schema).is_some_and(|time| time.is_timestamp()))
    };
    if is_time(expr) || matches!(expr, Expr::Literal(..)) {
        return None;
    }
    let mut why = None;
    // The closure never fails.
    let _ = expr.apply(|part| {
        why = reason(part, left, right);
        Ok(if why.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    });
    Some(why.unwrap_or_else(|| format!("`{}` is not a time plus or minus a fixed interval", expr.human_display())))
}

fn reason(part: &Expr, left: &DFSchema, right: &DFSchema) -> Option<String> {
    let zone = |expr: &Expr| {
        [left, right].into_iter().find_map(|schema| match Time::of(expr, schema)?.data_type {
            DataType::Timestamp(_, zone) => zone,
            _ => None,
        })
    };
    match part {
        Expr::Literal(ScalarValue::IntervalYearMonth(Some(_)), _) => Some("a month has no fixed length".to_owned()),
        Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(interval)), _) if interval.months != 0 => {
            Some("a month has no fixed length".to_owned())
        }
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::Plus | Operator::Minus) => {
            let zone = zone(&binary.left).or_else(|| zone(&binary.right))?;
            let is_days = |expr: &Expr| matches!(expr, Expr::Literal(ScalarValue::IntervalMonthDayNano(Some(i)), _) if i.days != 0);
            let days = is_days(&binary.left) || is_days(&binary.right);
            (days && !is_utc(Some(&zone)))
                .then(|| format!("a day in the time zone {zone} has no fixed length (write hours instead)"))
        }
        Expr::ScalarFunction(function) if function.func.name() == "get_field" => {
            let [of, Expr::Literal(name, _)] = function.args.as_slice() else { return None };
            let is_start = name.try_as_str() == Some(Some("start"));
            let of_window = [left, right].into_iter().any(|schema| Time::of(of, schema).is_some());
            (is_start && of_window).then(|| {
                "the start of a session, or of a window of unknown length, says nothing of its end (join on the window \
                 itself, or on its end)"
                    .to_owned()
            })
        }
        Expr::ScalarFunction(function) => Some(format!("`{}` gives another time than the event time", function.name())),
        Expr::Cast(_) | Expr::TryCast(_) => Some(format!("`{}` may change the time", part.human_display())),
        Expr::Case(_) => Some("a CASE may be any time".to_owned()),
        _ => None,
    }
}
