//! Writers with little memory.

use arrow::array::{ArrayRef, Int64Array, StringArray};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::object_store::ObjectStoreUrl;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tidewater::error::ErrorKind;

use super::*;
use crate::options::Options;

const FOLDERS: i64 = 10;

/// A folder's number, a number, and half a kilobyte of text that does not compress well.
fn rows(first: i64) -> RecordBatch {
    let numbers = first..first + 100;
    let text = |n: i64| (0..32).map(|i| format!("{:016x}", (n * 32 + i).wrapping_mul(0x5851_F42D_4C95_7F2D))).collect();
    let texts: Vec<String> = numbers.clone().map(text).collect();
    let folder: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers.clone().map(|n| n % FOLDERS)));
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
    RecordBatch::try_from_iter([("folder", folder), ("n", numbers), ("text", Arc::new(StringArray::from(texts)) as _)])
        .unwrap()
}

fn layout(root: Root) -> Arc<Layout> {
    let encoding = Encoding::parse("parquet", &Options::new("a sink", &[], []).unwrap()).unwrap();
    Arc::new(Layout::new(root, encoding, &rows(0).schema(), &["folder".to_owned()], None, false).unwrap())
}

/// The numbers in a Parquet file, and how many row groups it has.
fn read(contents: bytes::Bytes) -> (Vec<i64>, usize) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(contents).unwrap();
    let groups = builder.metadata().num_row_groups();
    let found = builder.build().unwrap().flat_map(|rows| {
        let rows = rows.unwrap();
        rows.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec()
    });
    (found.collect(), groups)
}

/// Row groups are written before they are full, and files are not finished for it.
#[tokio::test]
async fn with_little_memory_row_groups_are_small() {
    for (bytes, are_small) in [(1 << 20, true), (1 << 30, false)] {
        let folder = tempfile::tempdir().unwrap();
        let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(bytes));
        let layout = layout(Root::Local(folder.path().to_owned()));
        let mut writer = Box::new(FilesOfPartition::new(layout, PartitionId(0), &pool));
        for part in 0..100 {
            writer.write(rows(part * 100)).await.unwrap();
        }
        assert!(pool.reserved() > 0, "nothing is on account");
        let files = writer.finish().await.unwrap().json::<Vec<ManifestEntry>>().unwrap();
        assert_eq!((files.len(), pool.reserved()), (FOLDERS as usize, 0));
        let (mut found, mut groups) = (vec![], 0);
        for file in files {
            let path = url::Url::parse(&file.path).unwrap().to_file_path().unwrap();
            let (numbers, count) = read(std::fs::read(path).unwrap().into());
            found.extend(numbers);
            groups += count;
        }
        found.sort_unstable();
        assert_eq!(found, (0..10_000).collect::<Vec<_>>());
        assert_eq!(groups > FOLDERS as usize, are_small, "{groups} row groups");
    }
}

/// In an object store a part that is not sent is in memory until its file is finished.
#[tokio::test]
async fn with_little_memory_parts_are_sent_and_files_finished() {
    let store = Arc::new(InMemory::new());
    let url = ObjectStoreUrl::parse("mem://bucket").unwrap();
    let root = Root::Remote { store: Arc::clone(&store) as _, url, folder: ObjectPath::from("out") };
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1 << 20));
    let mut writer = Box::new(FilesOfPartition::new(layout(root), PartitionId(0), &pool));
    for part in 0..100 {
        writer.write(rows(part * 100)).await.unwrap();
    }
    let files = writer.finish().await.unwrap().json::<Vec<ManifestEntry>>().unwrap();
    assert_eq!(pool.reserved(), 0);
    assert!(files.len() > FOLDERS as usize, "no file was finished early");
    let mut found = vec![];
    for file in files {
        let path = ObjectPath::from_url_path(file.path.strip_prefix("mem://bucket/").unwrap()).unwrap();
        found.extend(read(store.get(&path).await.unwrap().bytes().await.unwrap()).0);
    }
    found.sort_unstable();
    assert_eq!(found, (0..10_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn where_no_record_batch_has_room_the_sink_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let pool: Arc<dyn MemoryPool> = Arc::new(GreedyMemoryPool::new(1000));
    let layout = layout(Root::Local(folder.path().to_owned()));
    let mut writer = FilesOfPartition::new(layout, PartitionId(3), &pool);
    let error = writer.write(rows(0)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfMemory);
    let place = folder.path().display().to_string();
    let said = error.message();
    assert!(said.contains("files of partition 3") && said.contains(&place) && said.contains("bytes"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("memory pool")), "{error}");
}
