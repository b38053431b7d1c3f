//! What the tasks of a batch changed in the state of their operators becomes files.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use futures::future::try_join_all;

use super::local::{ROWS_WORTH_A_THREAD, Run, each};
use crate::checkpoint::FileEntry;
use crate::error::{Result, guarded_call};
use crate::state::{ChangeFiles, OperatorBatch};

/// Writes the changes of all operators: sorted by partition, each partition by a task of its own, then written at the same time.
/// By operator: the file; none if nothing changed.
pub(super) async fn write_changes(
    run: &Run,
    operators: &[Arc<OperatorBatch>],
    files: &[Arc<ChangeFiles>],
) -> Result<Vec<Option<FileEntry>>> {
    let mut sorted = vec![];
    for (operator, files) in operators.iter().zip(files) {
        // On account until they are sorted.
        let (changes, _claimed) = operator.take_changes();
        let rows: usize = changes.iter().flatten().map(RecordBatch::num_rows).sum();
        let (partitions, mut changes) = (changes.len(), changes.into_iter());
        let sort = |_partition| {
            let (files, changes) = (Arc::clone(files), changes.next().unwrap_or_default());
            guarded_call(|| "the sorting of changes of state".to_owned(), async move { files.sort(&changes) })
        };
        sorted.push(each(run, partitions, rows >= ROWS_WORTH_A_THREAD, sort).await?);
    }
    try_join_all(files.iter().zip(&sorted).map(|(files, sorted)| files.write(run.work.batch, sorted))).await
}
