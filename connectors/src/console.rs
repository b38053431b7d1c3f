//! The rows of every batch as a table on standard output: for trying things out.
//!
//! Rows are printed when the batch is committed. A batch that is repeated after a crash is printed again.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use arrow::util::pretty::pretty_format_batches;
use async_trait::async_trait;
use parking_lot::Mutex;
use tidewater::error::{Error, Result};
use tidewater::id::{BatchId, PartitionId};
use tidewater::identity::Identity;
use tidewater::query::OutputMode;
use tidewater::sink::{BatchStatus, DataWriter, Guarantee, Receipt, Sink, SinkContext, StreamingWrite};

use crate::options::Options;

const NUM_ROWS: usize = 20;
const WIDTH: usize = 20;
const RULE: &str = "-------------------------------------------";

/// Prints the rows of every batch as a table. All output modes; a batch may be printed twice after a crash. Its writers stay
/// with the driver, which prints.
///
/// ```
/// use tidewater_connectors::console::ConsoleSink;
///
/// let sink = ConsoleSink::new().num_rows(5).truncate(false);
/// ```
///
/// Options by name, as Spark calls them: `numRows` (20) and `truncate` (`true`, which is 20 characters; `false`; or a number).
#[derive(Clone)]
pub struct ConsoleSink {
    num_rows: usize,
    truncate: Truncate,
    output: Arc<Mutex<dyn Write + Send>>,
}

impl ConsoleSink {
    /// Prints on standard output, at most 20 rows of a batch and 20 characters of a value.
    pub fn new() -> Self {
        Self::to(std::io::stdout())
    }

    /// Prints to `output` instead.
    pub fn to(output: impl Write + Send + 'static) -> Self {
        ConsoleSink { num_rows: NUM_ROWS, truncate: true.into(), output: Arc::new(Mutex::new(output)) }
    }

    /// A sink by options alone.
    pub fn from_options(options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let options = Options::new("the console sink", &["numRows", "truncate"], options)?;
        let mut sink = ConsoleSink::new();
        if let Some(rows) = options.positive_u64("numRows")? {
            sink.num_rows = usize::try_from(rows).unwrap_or(usize::MAX);
        }
        let width = |value: &str| match value.to_ascii_lowercase().as_str() {
            "true" => Some(Truncate::from(true)),
            "false" => Some(Truncate::from(false)),
            number => number.parse::<usize>().ok().map(Truncate::from),
        };
        if let Some(truncate) = options.parsed("truncate", "`true`, `false` or a number of characters", width)? {
            sink.truncate = truncate;
        }
        Ok(sink)
    }

    /// How many rows of a batch are printed; of the others, the number.
    #[must_use]
    pub fn num_rows(mut self, rows: usize) -> Self {
        self.num_rows = rows;
        self
    }

    /// To how many characters a value is cut: `true` is 20, `false` prints it whole.
    #[must_use]
    pub fn truncate(mut self, width: impl Into<Truncate>) -> Self {
        self.truncate = width.into();
        self
    }
}

impl Default for ConsoleSink {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ConsoleSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConsoleSink").field("num_rows", &self.num_rows).field("truncate", &self.truncate).finish()
    }
}

/// To how many characters a printed value is cut; made from a number or a `bool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate(Option<usize>);

impl From<bool> for Truncate {
    fn from(truncate: bool) -> Self {
        Truncate(truncate.then_some(WIDTH))
    }
}

impl From<usize> for Truncate {
    /// Zero cuts nothing, as in Spark.
    fn from(width: usize) -> Self {
        Truncate((width > 0).then_some(width))
    }
}

impl Truncate {
    fn apply(self, text: String) -> String {
        match self.0 {
            Some(width) if text.chars().count() > width => {
                // There is no use in dots that leave nothing of the value.
                let (kept, dots) = if width < 4 { (width, "") } else { (width - 3, "...") };
                text.chars().take(kept).chain(dots.chars()).collect()
            }
            _ => text,
        }
    }
}

#[async_trait]
impl Sink for ConsoleSink {
    fn description(&self) -> String {
        "console".to_owned()
    }

    fn identity(&self) -> Option<Identity> {
        Some(Identity::new("console"))
    }

    fn guarantee(&self) -> Guarantee {
        Guarantee::AtLeastOnce
    }

    fn supports_output_mode(&self, _mode: OutputMode) -> bool {
        true
    }

    async fn open(&self, context: SinkContext) -> Result<Box<dyn StreamingWrite>> {
        Ok(Box::new(ConsoleWriter { sink: self.clone(), schema: context.schema }))
    }
}

#[derive(Debug)]
struct ConsoleWriter {
    sink: ConsoleSink,
    schema: SchemaRef,
}

#[async_trait]
impl StreamingWrite for ConsoleWriter {
    async fn begin(&self, _batch: BatchId) -> Result<BatchStatus> {
        Ok(BatchStatus::New)
    }

    fn partition(&self, _batch: BatchId, _partition: PartitionId) -> Result<Box<dyn DataWriter>> {
        Ok(Box::new(FirstRows { wanted: self.sink.num_rows, rows: 0, first: vec![] }))
    }

    async fn commit(&self, batch: BatchId, receipts: Vec<Receipt>) -> Result<()> {
        let total: u64 = receipts.iter().map(|receipt| receipt.rows).sum();
        let first: Vec<Vec<RecordBatch>> = receipts.into_iter().map(Receipt::into_rows).collect::<Result<_>>()?;
        let (mut shown, mut left) = (vec![], self.sink.num_rows);
        for rows in first.into_iter().flatten() {
            let rows = rows.slice(0, left.min(rows.num_rows()));
            left -= rows.num_rows();
            shown.push(as_text(&self.schema, &rows, self.sink.truncate)?);
        }
        if shown.is_empty() {
            shown.push(as_text(&self.schema, &RecordBatch::new_empty(Arc::clone(&self.schema)), self.sink.truncate)?);
        }
        let mut text = format!("{RULE}\nBatch: {batch}\n{RULE}\n{}\n", pretty_format_batches(&shown)?);
        match total - (self.sink.num_rows - left) as u64 {
            0 => {}
            1 => text.push_str("and 1 more row\n"),
            more => text.push_str(&format!("and {more} more rows\n")),
        }
        let mut output = self.sink.output.lock();
        output
            .write_all(text.as_bytes())
            .and_then(|()| output.flush())
            .map_err(|e| Error::io("print the batch", "standard output", e))
    }
}

/// Keeps the first rows of a partition and counts all.
struct FirstRows {
    wanted: usize,
    rows: u64,
    first: Vec<RecordBatch>,
}

#[async_trait]
impl DataWriter for FirstRows {
    async fn write(&mut self, rows: RecordBatch) -> Result<()> {
        self.rows += rows.num_rows() as u64;
        let taken = self.wanted.min(rows.num_rows());
        self.wanted -= taken;
        if taken > 0 {
            self.first.push(rows.slice(0, taken));
        }
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<Receipt> {
        Ok(Receipt::new(self.rows).with_rows(self.first))
    }
}

/// Every value as the text that is printed for it.
fn as_text(schema: &Schema, rows: &RecordBatch, truncate: Truncate) -> Result<RecordBatch> {
    let format = FormatOptions::new().with_null("NULL");
    let fields: Vec<Field> = schema.fields().iter().map(|f| Field::new(f.name(), DataType::Utf8, false)).collect();
    let columns = rows.columns().iter().map(|column| {
        let formatter = ArrayFormatter::try_new(column, &format)?;
        let texts = (0..column.len()).map(|row| truncate.apply(formatter.value(row).to_string()));
        Ok(Arc::new(StringArray::from_iter_values(texts)) as ArrayRef)
    });
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.collect::<Result<_>>()?)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use datafusion::prelude::SessionContext;

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn rows(n: i64) -> RecordBatch {
        let s: ArrayRef = Arc::new(StringArray::from_iter((0..n).map(|i| (i > 0).then(|| "long ".repeat(10)))));
        let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..n));
        RecordBatch::try_from_iter_with_nullable([("n", n, true), ("s", s, true)]).unwrap()
    }

    async fn printed(sink: impl FnOnce(ConsoleSink) -> ConsoleSink, partitions: &[i64]) -> String {
        let page = Page::default();
        let mut context = SinkContext::new(rows(0).schema(), Arc::new(SessionContext::new().state()));
        context.output_mode = OutputMode::Update;
        (context.next_batch, context.next_batch_may_be_committed) = (BatchId(7), true);
        let writer = sink(ConsoleSink::to(page.clone())).open(context).await.unwrap();
        assert_eq!(writer.begin(BatchId(7)).await.unwrap(), BatchStatus::New);
        let mut receipts = vec![];
        for (i, n) in partitions.iter().enumerate() {
            let mut partition = writer.partition(BatchId(7), PartitionId(i)).unwrap();
            partition.write(rows(*n)).await.unwrap();
            receipts.push(partition.finish().await.unwrap());
        }
        writer.commit(BatchId(7), receipts).await.unwrap();
        let bytes = page.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test]
    async fn rows_of_all_partitions_up_to_the_limit() {
        let text = printed(|sink| sink.num_rows(3), &[2, 4]).await;
        let expected = "\
-------------------------------------------
Batch: 7
-------------------------------------------
+---+----------------------+
| n | s                    |
+---+----------------------+
| 0 | NULL                 |
| 1 | long long long lo... |
| 0 | NULL                 |
+---+----------------------+
and 3 more rows
";
        assert_eq!(text, expected);
    }

    #[tokio::test]
    async fn an_empty_batch_shows_its_columns() {
        let text = printed(|sink| sink, &[]).await;
        assert!(text.contains("Batch: 7") && text.contains("| n | s |") && !text.contains("more"), "{text}");
    }

    #[test]
    fn values_are_cut_as_asked() {
        let cut = |truncate: Truncate| truncate.apply("abcdefgh".to_owned());
        assert_eq!(cut(5.into()), "ab...");
        assert_eq!(cut(3.into()), "abc");
        assert_eq!(cut(8.into()), "abcdefgh");
        assert_eq!(cut(false.into()), "abcdefgh");
        let given = |v: &str| ConsoleSink::from_options([("truncate".to_owned(), v.to_owned())]);
        assert_eq!(given("FALSE").unwrap().truncate, false.into());
        assert_eq!(given("7").unwrap().truncate, 7.into());
        assert!(given("a lot").is_err());
    }
}
