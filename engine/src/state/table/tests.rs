//! The table against a map.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{Field, Int64Type};
use proptest::prelude::*;

use super::chunks::CHUNKS_PER_SIZE;
use super::*;
use crate::state::key_hash::hash_keys;

/// Limits that a few rows reach.
const SMALL: Limits =
    Limits { chunk_rows: 8, chunk_bytes: 1024, block_bytes: 4096, file_bytes: 4096, entries_per_level: 16 };

fn table() -> StateTable {
    table_of(Limits::default())
}

fn table_of(limits: Limits) -> StateTable {
    StateTable::new(
        &[Arc::new(Field::new("k", DataType::Int64, true))],
        &[Arc::new(Field::new("v", DataType::Int64, true)), Arc::new(Field::new("text", DataType::Utf8View, true))],
        &Resources::unbounded(limits),
    )
    .unwrap()
}

/// Puts (key, time, value), replacing the newest row of the key if `replace`.
fn put(table: &mut StateTable, rows: &[(i64, i64, i64)], replace: bool) -> Vec<SlotId> {
    let keys: ArrayRef = Arc::new(rows.iter().map(|r| Some(r.0)).collect::<Int64Array>());
    let hashes = hash_keys(&[Arc::clone(&keys)], rows.len()).unwrap();
    let keys = table.encode(&[keys]).unwrap();
    let slots: Vec<Option<SlotId>> =
        (0..rows.len()).map(|i| if replace { table.find(hashes[i], keys.row(i)).unwrap() } else { None }).collect();
    let times: Vec<i64> = rows.iter().map(|r| r.1).collect();
    let values: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| Some(r.2)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| Some(format!("a text of some length, {}", r.2))).collect::<StringViewArray>()),
    ];
    table.put(&slots, NewRows { keys: &keys, hashes: &hashes, times_us: &times, values }).unwrap()
}

fn contents(table: &StateTable) -> Vec<(i64, i64, i64)> {
    let slots: Vec<SlotId> = table.slots();
    let (keys, values) = (table.keys(&slots).unwrap(), table.values(&slots).unwrap());
    let (keys, numbers) = (keys[0].as_primitive::<Int64Type>(), values[0].as_primitive::<Int64Type>());
    let texts = values[1].as_string_view();
    let mut rows: Vec<_> = (0..slots.len())
        .map(|i| {
            assert_eq!(texts.value(i), format!("a text of some length, {}", numbers.value(i)));
            (keys.value(i), table.time_us(slots[i]), numbers.value(i))
        })
        .collect();
    rows.sort_unstable();
    rows
}

#[test]
fn a_key_may_have_several_rows() {
    let mut table = table();
    let slots = put(&mut table, &[(1, 10, 100), (2, 10, 200), (1, 20, 101)], false);
    let newest = slots[2];
    assert_eq!(table.older(newest), Some(slots[0]));
    assert_eq!(table.older(slots[0]), None);
    table.remove(&[newest]).unwrap();
    assert_eq!(contents(&table), [(1, 10, 100), (2, 10, 200)]);
    table.remove(&slots[..1]).unwrap();
    assert_eq!(put(&mut table, &[(1, 5, 102)], true).len(), 1);
    assert_eq!(contents(&table), [(1, 5, 102), (2, 10, 200)]);
}

#[test]
fn memory_does_not_grow_with_the_number_of_batches() {
    let mut table = table();
    for batch in 0..2000 {
        put(&mut table, &[(batch % 10, NEVER, batch)], true);
    }
    assert_eq!(table.len(), 10);
    assert!(table.chunks.iter().count() <= 2 * CHUNKS_PER_SIZE, "{}", table.chunks.places());
    assert!(table.bytes() < 200_000, "{}", table.bytes());
}

/// Chunks are within their limits, few, and at least half full.
fn check(table: &StateTable) {
    let limits = table.limits();
    let (mut rows, mut small) = (0, 0);
    for chunk in table.chunks.iter() {
        let bytes: usize = chunk.values.iter().map(|values| RowBytes::new([values]).of_rows(chunk.slots.len())).sum();
        assert!(chunk.slots.len() <= limits.chunk_rows && (bytes <= limits.chunk_bytes || chunk.slots.len() == 1));
        rows += chunk.slots.len();
        small += usize::from(chunk.slots.len() < limits.chunk_rows / 2 && bytes < limits.chunk_bytes / 2);
    }
    assert_eq!(rows, table.chunks.rows());
    assert!(rows <= 2 * table.len() + 1024 + limits.chunk_rows, "{rows} rows for {}", table.len());
    assert!(small <= 5 * CHUNKS_PER_SIZE, "{small} small chunks");
}

fn numbered(keys: impl Iterator<Item = i64>, time: i64) -> Vec<(i64, i64, i64)> {
    keys.map(|key| (key, time, key)).collect()
}

#[test]
fn a_batch_compacts_in_proportion_to_what_it_changes() {
    let limits = Limits { chunk_rows: 256, ..Limits::default() };
    let mut table = table_of(limits);
    put(&mut table, &numbered(0..50_000, NEVER), false);
    let mut total = 0;
    for batch in 0..2000 {
        table.rewritten = 0;
        let count = if batch % 10 == 0 { 400 } else { 3 };
        put(&mut table, &numbered((0..count).map(|row| (row * 7919 + batch * 104_729) % 50_000), NEVER), true);
        // What is read: twice what was changed, and one chunk more; the last step may go beyond by what it takes at once.
        assert!(table.rewritten <= 2 * count as usize + 3 * limits.chunk_rows, "{} in a batch", table.rewritten);
        total += table.rewritten;
        check(&table);
    }
    assert!(total > 20_000, "only {total} rows were moved");
    assert_eq!(contents(&table).len(), 50_000);
}

#[test]
fn what_is_evicted_gives_its_memory_back() {
    for limits in [Limits::default(), Limits { chunk_rows: 100, ..Limits::default() }] {
        let mut table = table_of(limits);
        let empty = table.bytes();
        for batch in 0..20 {
            put(&mut table, &numbered(batch * 5000..(batch + 1) * 5000, batch * 1_000_000), false);
        }
        let full = table.bytes();
        assert_eq!(table.claimed.size(), full);
        let due = table.due(17_500_000).unwrap();
        assert_eq!(due.len(), 90_000);
        table.remove(&due).unwrap();
        check(&table);
        assert!(table.bytes() < full / 5, "{} of {full}", table.bytes());
        assert_eq!(
            contents(&table),
            numbered(90_000..100_000, 0).iter().map(|r| (r.0, r.0 / 5000 * 1_000_000, r.2)).collect::<Vec<_>>()
        );
        let due = table.due(NEVER - 1).unwrap();
        table.remove(&due).unwrap();
        assert_eq!((table.len(), table.chunks.places(), table.slots().len()), (0, 0, 0));
        assert!(
            table.bytes() < empty + 40_000,
            "{} were {empty}: {} {} {} {}",
            table.bytes(),
            table.chunks.memory(),
            table.index.memory(),
            table.slots.memory(),
            table.by_time.memory()
        );
        assert_eq!(table.claimed.size(), table.bytes());
    }
}

#[test]
fn a_random_half_that_leaves_is_compacted_away() {
    let mut table = table_of(Limits { chunk_rows: 64, ..Limits::default() });
    let slots = put(&mut table, &numbered(0..20_000, NEVER), false);
    let gone: Vec<SlotId> = slots.iter().enumerate().filter(|(i, _)| i % 8 != 0).map(|(_, slot)| *slot).collect();
    table.remove(&gone).unwrap();
    check(&table);
    assert_eq!(contents(&table), numbered((0..20_000).step_by(8), NEVER));
}

/// Values of all rows together are larger than any array here may be: they are put, moved and read in parts.
#[test]
fn large_values_are_never_in_one_array() {
    let limits =
        Limits { chunk_rows: 1000, chunk_bytes: 2000, block_bytes: 3000, file_bytes: 8000, entries_per_level: 16 };
    let text = |of_type: DataType| -> Arc<Field> { Arc::new(Field::new("text", of_type, true)) };
    for of_type in [DataType::Utf8, DataType::Utf8View] {
        let keys = [Arc::new(Field::new("k", DataType::Int64, true))];
        let mut table = StateTable::new(&keys, &[text(of_type.clone())], &Resources::unbounded(limits)).unwrap();
        for round in 0..30 {
            let keys: ArrayRef = Arc::new((0..100).collect::<Int64Array>());
            let hashes = hash_keys(&[Arc::clone(&keys)], 100).unwrap();
            let keys = table.encode(&[keys]).unwrap();
            let texts: StringViewArray = (0..100).map(|row| Some(format!("{round} {row} ").repeat(20))).collect();
            let values = vec![arrow::compute::cast(&texts, &of_type).unwrap()];
            let slots = table.find_all(&hashes, &keys, &(0..100).collect::<Vec<u32>>()).unwrap();
            table.put(&slots, NewRows { keys: &keys, hashes: &hashes, times_us: &[NEVER; 100], values }).unwrap();
        }
        assert_eq!(table.len(), 100);
        for chunk in table.chunks.iter() {
            let bytes = RowBytes::new(&chunk.values).of_rows(chunk.slots.len());
            assert!(bytes <= limits.chunk_bytes, "{bytes}");
            assert!(chunk.values[0].get_buffer_memory_size() <= 2 * limits.chunk_bytes);
        }
        let slots: Vec<SlotId> = table.slots();
        let parts = table.bounded_ranges(&slots, usize::MAX);
        assert!(parts.len() > 4);
        for part in parts {
            let slots = &slots[part];
            let (keys, texts) = (table.keys(slots).unwrap(), table.values(slots).unwrap());
            assert!(RowBytes::new(&texts).of_rows(slots.len()) <= limits.block_bytes);
            let texts = arrow::compute::cast(&texts[0], &DataType::Utf8View).unwrap();
            let keys = keys[0].as_primitive::<Int64Type>();
            for row in 0..slots.len() {
                assert_eq!(texts.as_string_view().value(row), format!("29 {} ", keys.value(row)).repeat(20));
            }
        }
    }
}

#[test]
fn the_pool_is_asked_and_its_refusal_names_the_operator() {
    let pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool> =
        Arc::new(datafusion::execution::memory_pool::GreedyMemoryPool::new(1 << 20));
    let resources = Resources::new(Limits::default(), &pool, "operator 3 (aggregate)".to_owned());
    let mut table = StateTable::new(&[Arc::new(Field::new("k", DataType::Int64, true))], &[], &resources).unwrap();
    let keys: ArrayRef = Arc::new((0..100_000).collect::<Int64Array>());
    let hashes = hash_keys(&[Arc::clone(&keys)], 100_000).unwrap();
    let keys = table.encode(&[keys]).unwrap();
    let rows = NewRows { keys: &keys, hashes: &hashes, times_us: &vec![NEVER; 100_000], values: vec![] };
    let refused = Error::from(table.put(&vec![None; 100_000], rows).unwrap_err());
    assert_eq!(refused.kind(), ErrorKind::OutOfMemory);
    assert!(refused.to_string().contains("operator 3 (aggregate)"), "{refused}");
    drop(table);
    assert_eq!(pool.reserved(), 0);
}

proptest! {
    /// Whatever is put, removed and falls due, the table holds what a map of rows would hold.
    #[test]
    fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0i64..20, 0i64..300_000, 0i64..1000), 1..200), small: bool) {
        let mut table = table_of(if small { SMALL } else { Limits::default() });
        let mut model: HashMap<i64, (i64, i64)> = HashMap::new();
        for (what, key, time, value) in steps {
            match what {
                0 => {
                    put(&mut table, &[(key, time, value), (key + 100, time, value)], true);
                    model.insert(key, (time, value));
                    model.insert(key + 100, (time, value));
                }
                1 => {
                    let keys: ArrayRef = Arc::new(Int64Array::from(vec![key]));
                    let hash = hash_keys(&[Arc::clone(&keys)], 1).unwrap()[0];
                    let encoded = table.encode(&[keys]).unwrap();
                    let found = table.find(hash, encoded.row(0)).unwrap();
                    prop_assert_eq!(found.is_some(), model.remove(&key).is_some());
                    found.into_iter().for_each(|slot| table.remove(&[slot]).unwrap());
                }
                _ => {
                    let due = table.due(time).unwrap();
                    prop_assert_eq!(due.len(), model.values().filter(|row| row.0 <= time).count());
                    table.remove(&due).unwrap();
                    model.retain(|_, row| row.0 > time);
                }
            }
            let mut expected: Vec<_> = model.iter().map(|(k, (t, v))| (*k, *t, *v)).collect();
            expected.sort_unstable();
            prop_assert_eq!(contents(&table), expected);
            prop_assert_eq!(table.len(), model.len());
            check(&table);
        }
    }
}
