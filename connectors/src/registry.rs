//! Connectors by name, for SQL and command lines.
//!
//! Here a name and some text become a source or a sink, which `read_stream` and `write_stream` take like any other;
//! everything else in this crate is typed. SQL reaches it through
//! DataFusion's own statement, once [`register_connectors`] was called:
//!
//! ```sql
//! CREATE UNBOUNDED EXTERNAL TABLE clicks (ts TIMESTAMP, page VARCHAR)
//! STORED AS JSON LOCATION 'in/' OPTIONS ('maxFilesPerTrigger' '10');
//! ```
//!
//! Without `UNBOUNDED` the table is DataFusion's, read whole.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider, TableProviderFactory};
use datafusion::logical_expr::CreateExternalTable;
use datafusion::prelude::SessionContext;
use tidewater::error::{Error, Result};
use tidewater::sink::{DiscardSink, Sink};
use tidewater::source::{Source, StreamTable};

use crate::options::Options;

/// The sources, by the names that [`source`] takes.
pub const SOURCES: &[&str] = &[
    #[cfg(feature = "file")]
    "csv",
    #[cfg(feature = "file")]
    "json",
    #[cfg(feature = "file")]
    "parquet",
    #[cfg(feature = "kafka")]
    "kafka",
    #[cfg(feature = "rate")]
    "rate",
    #[cfg(feature = "rate")]
    "rate-micro-batch",
];

/// The sinks, by the names that [`sink`] takes.
pub const SINKS: &[&str] = &[
    #[cfg(feature = "file")]
    "csv",
    #[cfg(feature = "file")]
    "json",
    #[cfg(feature = "file")]
    "parquet",
    #[cfg(feature = "kafka")]
    "kafka",
    #[cfg(feature = "console")]
    "console",
    "discard",
    "noop",
];

/// The source of this name. `path` and `schema` are for sources that read files.
#[cfg_attr(not(feature = "file"), expect(unused_variables, reason = "only files have a path"))]
pub fn source(
    format: &str,
    path: Option<&str>,
    schema: Option<SchemaRef>,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Source>> {
    match canonical(format).as_str() {
        #[cfg(feature = "file")]
        name @ ("csv" | "json" | "parquet") => {
            let Some(schema) = schema else {
                let message = format!("a stream of {name} files needs to know which columns they have");
                return Err(Error::invalid(message)
                    .with_hint("write the columns down: files that come later may not look like the first"));
            };
            Ok(Arc::new(crate::file::FileSource::from_options(name, path, options)?.with_schema(schema)))
        }
        #[cfg(feature = "kafka")]
        "kafka" => Ok(Arc::new(crate::kafka::KafkaSource::from_options(options)?)),
        #[cfg(feature = "rate")]
        "rate" => Ok(Arc::new(crate::rate::RateSource::from_options(options)?)),
        #[cfg(feature = "rate")]
        "rate-micro-batch" => Ok(Arc::new(crate::rate::RatePerBatchSource::from_options(options)?)),
        _ => Err(Error::unknown("source", format, "this program", SOURCES)),
    }
}

/// The sink of this name. `path` is for sinks that write files.
#[cfg_attr(not(feature = "file"), expect(unused_variables, reason = "only files have a path"))]
pub fn sink(
    format: &str,
    path: Option<&str>,
    options: impl IntoIterator<Item = (String, String)>,
) -> Result<Arc<dyn Sink>> {
    match canonical(format).as_str() {
        #[cfg(feature = "file")]
        name @ ("csv" | "json" | "parquet") => Ok(Arc::new(crate::file::FileSink::from_options(name, path, options)?)),
        #[cfg(feature = "kafka")]
        "kafka" => Ok(Arc::new(crate::kafka::KafkaSink::from_options(options)?)),
        #[cfg(feature = "console")]
        "console" => Ok(Arc::new(crate::console::ConsoleSink::from_options(options)?)),
        "discard" | "noop" => {
            Options::new("the discard sink", &[], options)?;
            Ok(Arc::new(DiscardSink::new()))
        }
        _ => Err(Error::unknown("sink", format, "this program", SINKS)),
    }
}

/// SQL's unquoted names are of any case and have no dashes.
fn canonical(format: &str) -> String {
    format.to_ascii_lowercase().replace('_', "-")
}

/// Lets `CREATE UNBOUNDED EXTERNAL TABLE … STORED AS <source>` make a stream in this session. Tables without `UNBOUNDED`
/// stay what they were.
pub fn register_connectors(ctx: &SessionContext) {
    let state = ctx.state_ref();
    let mut state = state.write();
    let factories = state.table_factories_mut();
    for name in SOURCES {
        for key in [name.to_ascii_uppercase(), name.to_ascii_uppercase().replace('-', "_")] {
            let bounded = factories.remove(&key);
            factories.insert(key, Arc::new(StreamTableFactory { bounded }));
        }
    }
}

/// Makes a stream of what is unbounded, and leaves the rest to whom it belonged.
#[derive(Debug)]
struct StreamTableFactory {
    bounded: Option<Arc<dyn TableProviderFactory>>,
}

#[async_trait]
impl TableProviderFactory for StreamTableFactory {
    async fn create(
        &self,
        session: &dyn Session,
        table: &CreateExternalTable,
    ) -> datafusion::error::Result<Arc<dyn TableProvider>> {
        if !table.unbounded {
            return match &self.bounded {
                Some(bounded) => bounded.create(session, table).await,
                None => {
                    let message = format!("a table stored as {} has no end", table.file_type);
                    Err(Error::invalid(message).with_hint("write `CREATE UNBOUNDED EXTERNAL TABLE`").into())
                }
            };
        }
        let path = match &table.locations[..] {
            [path] => path.as_str(),
            _ => return Err(Error::unsupported("a stream reads one location: name a folder or a glob").into()),
        };
        if !table.order_exprs.is_empty() {
            return Err(Error::unsupported("a stream's rows come in no order: leave out `WITH ORDER`").into());
        }
        let schema = Arc::clone(table.schema.inner());
        let schema = (!schema.fields().is_empty()).then_some(schema);
        let source = source(&table.file_type, Some(path), schema, options_of(&table.options))?;
        Ok(Arc::new(StreamTable::new(source)))
    }
}

/// DataFusion puts `format.` before every option that has no dot of its own.
fn options_of(options: &HashMap<String, String>) -> Vec<(String, String)> {
    let bare = |name: &String| name.strip_prefix("format.").unwrap_or(name).to_owned();
    options.iter().map(|(name, value)| (bare(name), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use tidewater::query::{StreamingDataFrameExt, StreamingSessionExt};
    use tidewater::trigger::Trigger;

    use super::*;

    fn none() -> Vec<(String, String)> {
        vec![]
    }

    #[test]
    fn every_name_is_known_and_near_ones_are_offered() {
        for name in SINKS {
            let needed: &[(&str, &str)] = match *name {
                "kafka" => &[("kafka.bootstrap.servers", "localhost:9092"), ("topic", "out")],
                _ => &[],
            };
            let needed = needed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            sink(name, Some("/tmp/out"), needed).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        let error = sink("parket", Some("out"), none()).unwrap_err();
        assert!(error.message().contains("did you mean `parquet`"), "{error}");
        let error = source("ratemicrobatch", None, None, none()).unwrap_err();
        assert!(error.message().contains("`rate-micro-batch`"), "{error}");
        assert!(error.hint().unwrap().contains("json"), "{error}");
        assert!(source("json", Some("in"), None, none()).unwrap_err().message().contains("which columns"));
        let error = sink("noop", None, [("a".to_owned(), "b".to_owned())]).unwrap_err();
        assert!(error.message().contains("unknown option `a` of the discard sink"), "{error}");
    }

    #[tokio::test]
    async fn what_a_name_stands_for_is_read_and_written_like_any_other() {
        let rate = source("rate-micro-batch", None, None, [("rowsPerBatch".to_owned(), "5".to_owned())]).unwrap();
        let stream = SessionContext::new().read_stream(rate).unwrap();
        let writer = stream.write_stream(sink("noop", None, none()).unwrap()).trigger(Trigger::Once);
        let query = writer.start().await.unwrap();
        query.await_termination().await.unwrap();
        assert_eq!(query.last_progress().unwrap().sink.num_output_rows, 5);
    }

    #[tokio::test]
    async fn an_unbounded_table_is_a_stream() {
        let ctx = SessionContext::new();
        register_connectors(&ctx);
        ctx.sql(
            "CREATE UNBOUNDED EXTERNAL TABLE numbers STORED AS RATE_MICRO_BATCH LOCATION '' \
             OPTIONS ('rowsPerBatch' '5')",
        )
        .await
        .unwrap();
        let provider = ctx.table_provider("numbers").await.unwrap();
        assert!(provider.downcast_ref::<StreamTable>().is_some());
        assert!(ctx.sql("SELECT value FROM numbers").await.unwrap().collect().await.is_err());
        let error = ctx.sql("CREATE EXTERNAL TABLE n STORED AS RATE LOCATION ''").await.unwrap_err();
        assert!(error.to_string().contains("UNBOUNDED"), "{error}");
        let wrong = "CREATE UNBOUNDED EXTERNAL TABLE n STORED AS RATE LOCATION '' OPTIONS ('rowPerSecond' '5')";
        let error = Error::from(ctx.sql(wrong).await.unwrap_err());
        assert!(error.message().contains("rowsPerSecond"), "{error}");
    }

    #[cfg(feature = "file")]
    #[tokio::test]
    async fn a_bounded_table_is_still_datafusions() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.csv"), "n\n1\n2\n").unwrap();
        let ctx = SessionContext::new();
        register_connectors(&ctx);
        let location = folder.path().display();
        let options = "OPTIONS ('format.has_header' 'true')";
        ctx.sql(&format!("CREATE EXTERNAL TABLE t (n BIGINT) STORED AS CSV LOCATION '{location}/' {options}"))
            .await
            .unwrap();
        assert_eq!(ctx.sql("SELECT n FROM t").await.unwrap().count().await.unwrap(), 2);
        ctx.sql(&format!(
            "CREATE UNBOUNDED EXTERNAL TABLE s (n BIGINT) STORED AS CSV LOCATION '{location}/' OPTIONS ('header' 'true')"
        ))
        .await
        .unwrap();
        let provider = ctx.table_provider("s").await.unwrap();
        let stream = provider.downcast_ref::<StreamTable>().unwrap();
        assert_eq!(stream.source().schema().field(0).name(), "n");
    }
}
