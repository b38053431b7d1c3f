//! A case's query → a `DataFrame`, over streams or over anything else that has the columns.

use std::collections::BTreeMap;
use std::sync::Arc;

use datafusion::datasource::MemTable;
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::prelude::*;
use futures::future::{BoxFuture, FutureExt};
use tidewater::error::{Error, Result};
use tidewater::prelude::*;
use tidewater::testing::table;

use super::case::{Case, How, Key, Op, Query};

/// What a query is built from: the session, and the case's sources.
pub(super) struct Inputs<'a> {
    pub(super) ctx: &'a SessionContext,
    pub(super) case: &'a Case,
    pub(super) sources: &'a BTreeMap<String, MemorySource>,
    pub(super) partitions: usize,
}

impl Inputs<'_> {
    pub(super) fn build<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<DataFrame>> {
        async move {
            let mut frame = self.from(&query.from).await?;
            for (at, op) in query.ops.iter().enumerate() {
                // The window itself is needed for its time, through filters if need be, and is gone after that.
                let mut further = query.ops.iter().skip(at + 1).skip_while(|op| matches!(op, Op::Filter(_)));
                let keep = matches!(op, Op::GroupBy { .. }) && matches!(further.next(), Some(Op::WindowTime(_)));
                frame = self.apply(frame, op, keep).await?;
            }
            Ok(frame)
        }
        .boxed()
    }

    async fn from(&self, name: &str) -> Result<DataFrame> {
        if let Some(source) = self.sources.get(name) {
            return self.ctx.read_stream(source.clone());
        }
        let rows = self.case.tables.get(name).ok_or_else(|| Error::invalid(format!("the case has no `{name}`")))?;
        let columns: Vec<(&str, &str)> = rows.schema.iter().map(|(c, t)| (c.as_str(), t.as_str())).collect();
        let schema = table::schema(&columns)?;
        let mut partitions: Vec<_> = table::deal(&table::rows(&schema, &rows.rows)?, self.partitions)?
            .into_iter()
            .map(|rows| vec![rows])
            .collect();
        partitions.resize(self.partitions.max(1), vec![]);
        Ok(self.ctx.read_table(Arc::new(MemTable::try_new(schema, partitions)?))?)
    }

    async fn apply(&self, frame: DataFrame, op: &Op, keep_window: bool) -> Result<DataFrame> {
        let names = |columns: &[String]| columns.iter().map(ident).collect::<Vec<Expr>>();
        Ok(match op {
            Op::WithWatermark { column, delay } => frame.with_watermark(column, delay)?,
            Op::Filter(sql) => {
                let predicate = frame.parse_sql_expr(sql)?;
                frame.filter(predicate)?
            }
            Op::Select(columns) => {
                let columns: Result<Vec<Expr>> = columns.iter().map(|sql| Ok(frame.parse_sql_expr(sql)?)).collect();
                frame.select(columns?)?
            }
            Op::GroupBy { keys, aggs } => group_by(frame, keys, aggs, keep_window)?,
            Op::WindowTime(name) => {
                let kept = frame.schema().columns().into_iter().filter(|column| column.name != WINDOW);
                let mut columns: Vec<Expr> = kept.map(Expr::Column).collect();
                columns.push(window_time(ident(WINDOW)).alias(name));
                frame.select(columns)?
            }
            Op::DropDuplicates(columns) => frame.drop_duplicates(&as_strs(columns))?,
            Op::DropDuplicatesWithinWatermark(columns) => frame.drop_duplicates_within_watermark(&as_strs(columns))?,
            Op::Union(other) => frame.union(self.build(other).await?)?,
            Op::Join { right, how, on } => {
                let right = self.build(right).await?;
                let both = frame.schema().join(right.schema())?;
                let on = self.ctx.parse_sql_expr(on, &both)?;
                frame.join_on(right, join_type(*how), [on])?
            }
            Op::OrderBy(columns) => frame.sort_by(names(columns))?,
            Op::Limit(rows) => frame.limit(0, Some(*rows))?,
        })
    }
}

fn as_strs(columns: &[String]) -> Vec<&str> {
    columns.iter().map(String::as_str).collect()
}

fn join_type(how: How) -> JoinType {
    match how {
        How::Inner => JoinType::Inner,
        How::LeftOuter => JoinType::Left,
        How::RightOuter => JoinType::Right,
        How::FullOuter => JoinType::Full,
        How::LeftSemi => JoinType::LeftSemi,
        How::LeftAnti => JoinType::LeftAnti,
    }
}

/// The name under which a window is kept until its time is wanted.
const WINDOW: &str = "__window";

/// Groups, and turns a window key into `window_start` and `window_end`; the window itself comes last, if it is to be kept.
fn group_by(frame: DataFrame, keys: &[Key], aggs: &[String], keep_window: bool) -> Result<DataFrame> {
    let parse = |sql: &String| -> Result<Expr> { Ok(frame.parse_sql_expr(sql)?) };
    let key_exprs: Result<Vec<Expr>> = keys
        .iter()
        .map(|key| match key {
            Key::Column(name) => Ok(ident(name)),
            Key::Window { window: w } => {
                let windows = window(ident(&w.column), &w.size);
                let windows = w.slide.iter().fold(windows, TimeWindow::slide);
                Ok(w.offset.iter().fold(windows, TimeWindow::offset).into())
            }
            Key::Session { session_window: s } => {
                let gap = match (&s.gap, &s.gap_expr) {
                    (_, Some(sql)) => parse(sql)?,
                    (Some(gap), None) => lit(gap.as_str()),
                    (None, None) => return Err(Error::invalid("a session window without gap")),
                };
                Ok(session_window(ident(&s.column), gap))
            }
        })
        .collect();
    let aggs: Result<Vec<Expr>> = aggs.iter().map(parse).collect();
    let grouped = frame.aggregate(key_exprs?, aggs?)?;

    let columns: Vec<Expr> = grouped.schema().columns().into_iter().map(Expr::Column).collect();
    let mut output = vec![];
    let mut the_window = None;
    for (i, column) in columns.into_iter().enumerate() {
        match keys.get(i) {
            None | Some(Key::Column(_)) => output.push(column),
            Some(Key::Window { .. } | Key::Session { .. }) => {
                output.push(column.clone().field("start").alias("window_start"));
                output.push(column.clone().field("end").alias("window_end"));
                the_window = Some(column);
            }
        }
    }
    if keep_window {
        let the_window = the_window.ok_or_else(|| Error::invalid("`window_time` without a window"))?;
        output.push(the_window.alias(WINDOW));
    }
    Ok(grouped.select(output)?)
}
