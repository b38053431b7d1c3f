//! The sources of a query where its tasks run: what each leaf reads becomes a plan.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::Fields;
use datafusion::physical_plan::ExecutionPlan;

use super::{ScanContext, ScanRequest, Source, SourceScanner, Split, whose};
use crate::error::{Error, Result};
use crate::id::BatchId;

/// A leaf of the plan: the number of its source, and what it wants of it.
pub(crate) type LeafScan = (usize, ScanRequest);

/// The scanners of one run, in one process. They are made when the first batch runs.
#[derive(Debug)]
pub(crate) struct Scanners {
    sources: Vec<Arc<dyn Source>>,
    /// By leaf.
    leaves: Vec<LeafScan>,
    context: ScanContext,
    /// By source; none for one that gives no splits.
    opened: OnceLock<Vec<Option<Arc<dyn SourceScanner>>>>,
}

impl Scanners {
    pub(crate) fn new(sources: Vec<Arc<dyn Source>>, leaves: Vec<LeafScan>, context: ScanContext) -> Self {
        Scanners { sources, leaves, context, opened: OnceLock::new() }
    }

    /// Scanners of the same sources that share nothing with these, as in another process.
    pub(crate) fn anew(&self) -> Self {
        Scanners::new(self.sources.clone(), self.leaves.clone(), self.context.clone())
    }

    fn opened(&self) -> Result<&[Option<Arc<dyn SourceScanner>>]> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let opened = self.sources.iter().map(|source| source.scanner(self.context.clone())).collect::<Result<_>>()?;
        Ok(self.opened.get_or_init(|| opened))
    }

    fn leaf(&self, leaf: usize) -> Result<(usize, &Arc<dyn Source>, &ScanRequest)> {
        let found = self.leaves.get(leaf).and_then(|(number, request)| {
            let source = self.sources.get(*number)?;
            Some((*number, source, request))
        });
        found.ok_or_else(|| Error::internal(format!("leaf {leaf} reads a source that does not exist")))
    }

    /// The source of a leaf, in words.
    pub(crate) fn whose(&self, leaf: usize) -> String {
        self.leaf(leaf).map_or_else(|_| "a source".to_owned(), |(_, source, _)| whose(source.as_ref()))
    }

    /// A plan over the rows that a leaf reads.
    pub(crate) fn scan(&self, batch: BatchId, leaf: usize, splits: &[Split]) -> Result<Arc<dyn ExecutionPlan>> {
        let (number, source, request) = self.leaf(leaf)?;
        let scanner = self.opened()?.get(number).and_then(Option::as_ref).ok_or_else(|| {
            Error::internal(format!("{} gives splits, and nothing to scan them with", whose(source.as_ref())))
                .with_hint("the source must implement `Source::scanner`")
        })?;
        let plan = scanner.scan(batch, splits, request)?;
        check_columns(plan.as_ref(), request)?;
        Ok(plan)
    }

    /// By source: the metrics of its scanner for the batch.
    pub(crate) fn metrics(&self) -> Vec<BTreeMap<String, String>> {
        let opened = self.opened.get().into_iter().flatten();
        opened.map(|scanner| scanner.as_ref().map(|scanner| scanner.metrics()).unwrap_or_default()).collect()
    }
}

/// Adds the figures that a scanner gives to those of its reader: of one name, the sum, as far as both are whole numbers.
pub(crate) fn add_metrics(metrics: &mut BTreeMap<String, String>, scanned: &BTreeMap<String, String>) {
    for (name, figure) in scanned {
        let own = metrics.get(name).and_then(|own| own.parse::<u64>().ok());
        let sum = own.and_then(|own| own.checked_add(figure.parse().ok()?));
        metrics.insert(name.clone(), sum.map_or_else(|| figure.clone(), |sum| sum.to_string()));
    }
}

/// Refuses a plan whose columns are not those that were asked for. Names and metadata may differ.
pub(crate) fn check_columns(plan: &dyn ExecutionPlan, request: &ScanRequest) -> Result<()> {
    let same =
        |a: &Fields, b: &Fields| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.data_type() == b.data_type());
    if same(plan.schema().fields(), request.schema.fields()) {
        return Ok(());
    }
    Err(Error::internal(format!(
        "the source gave rows of {:?} where the query reads {:?}",
        plan.schema().fields(),
        request.schema.fields()
    )))
}
