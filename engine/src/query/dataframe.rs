//! What Tidewater adds to DataFusion's `DataFrame`.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::logical_expr::{Expr, Extension, LogicalPlan};
use datafusion::prelude::DataFrame;

use super::StreamWriter;
use super::sealed::Sealed;
use crate::error::Result;
use crate::interval::Interval;
use crate::plan::check::is_streaming;
use crate::plan::node::deduplicate::DeduplicateNode;
use crate::plan::node::watermark::WatermarkNode;
use crate::plan::windows;
use crate::sink::Sink;

/// What Tidewater adds to DataFusion's `DataFrame`. Everything but [`write_stream`](Self::write_stream) works on a batch,
/// too, so that one function serves both. It is implemented for that type alone.
pub trait StreamingDataFrameExt: Sealed + Sized {
    /// Whether some input of this query is a stream.
    fn is_streaming(&self) -> bool;

    /// Declares `column` as event time, and that rows come at most `delay` late. On a batch it changes nothing.
    ///
    /// `delay` is a `Duration`, or an interval as Spark writes it, such as `10 seconds`; a month counts 31 days.
    ///
    /// # Errors
    ///
    /// If there is no such top-level column (one with a dot in its name is found by that name), if it is not a
    /// timestamp, if the delay is negative, or if the input has a watermark already.
    fn with_watermark(self, column: &str, delay: impl Into<Interval>) -> Result<Self>;

    /// The first row of each combination of `columns`; all columns if none is named.
    fn drop_duplicates(self, columns: &[&str]) -> Result<Self>;

    /// Like [`drop_duplicates`](Self::drop_duplicates), but remembers a row only as long as the watermark's delay. A stream needs
    /// a watermark for it; on a batch, which is seen whole, it is `drop_duplicates`.
    fn drop_duplicates_within_watermark(self, columns: &[&str]) -> Result<Self>;

    /// Writes the rows of this stream to a sink, batch by batch, from [`StreamWriter::start`] on.
    fn write_stream(self, sink: impl Sink + 'static) -> StreamWriter;
}

impl StreamingDataFrameExt for DataFrame {
    fn is_streaming(&self) -> bool {
        is_streaming(self.logical_plan())
    }

    fn with_watermark(self, column: &str, delay: impl Into<Interval>) -> Result<Self> {
        let streaming = StreamingDataFrameExt::is_streaming(&self);
        let (mut state, plan) = self.into_parts();
        windows::enable(&mut state);
        let node = WatermarkNode::try_new(plan.clone(), column, &delay.into())?;
        let plan = if streaming { LogicalPlan::Extension(Extension { node: Arc::new(node) }) } else { plan };
        Ok(DataFrame::new(state, plan))
    }

    fn drop_duplicates(self, columns: &[&str]) -> Result<Self> {
        let (mut state, plan) = self.into_parts();
        windows::enable(&mut state);
        let this = DataFrame::new(state, plan);
        if StreamingDataFrameExt::is_streaming(&this) {
            return deduplicate(this, columns, false);
        }
        if columns.is_empty() {
            return Ok(this.distinct()?);
        }
        let all = this.schema().columns().into_iter().map(Expr::Column).collect();
        let keys = named(this.logical_plan(), columns)?.into_iter().map(Expr::Column).collect();
        Ok(this.distinct_on(keys, all, None)?)
    }

    fn drop_duplicates_within_watermark(self, columns: &[&str]) -> Result<Self> {
        if !StreamingDataFrameExt::is_streaming(&self) {
            return self.drop_duplicates(columns);
        }
        deduplicate(self, columns, true)
    }

    fn write_stream(self, sink: impl Sink + 'static) -> StreamWriter {
        StreamWriter::new(self, Arc::new(sink))
    }
}

fn deduplicate(stream: DataFrame, columns: &[&str], within_watermark: bool) -> Result<DataFrame> {
    let (state, input) = stream.into_parts();
    let keys = if columns.is_empty() { input.schema().columns() } else { named(&input, columns)? };
    let node = Arc::new(DeduplicateNode { input, keys, within_watermark });
    Ok(DataFrame::new(state, LogicalPlan::Extension(Extension { node })))
}

/// The columns of these names, dots and capitals included.
fn named(plan: &LogicalPlan, columns: &[&str]) -> Result<Vec<Column>> {
    let column = |name: &&str| -> Result<Column> {
        let (qualifier, field) = plan.schema().qualified_field_with_unqualified_name(name)?;
        Ok(Column::new(qualifier.cloned(), field.name()))
    };
    columns.iter().map(column).collect()
}
