//! The table against a map.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{Field, Int64Type};
use proptest::prelude::*;

use super::*;
use crate::state::key_hash::hash_keys;

fn table() -> Table {
    Table::new(
        &[Arc::new(Field::new("k", DataType::Int64, true))],
        &[Arc::new(Field::new("v", DataType::Int64, true)), Arc::new(Field::new("text", DataType::Utf8View, true))],
    )
    .unwrap()
}

/// Puts (key, time, value), replacing the newest row of the key if `replace`.
fn put(table: &mut Table, rows: &[(i64, i64, i64)], replace: bool) -> Vec<SlotId> {
    let keys: ArrayRef = Arc::new(rows.iter().map(|r| Some(r.0)).collect::<Int64Array>());
    let hashes = hash_keys(&[Arc::clone(&keys)], rows.len()).unwrap();
    let keys = table.encode(&[keys]).unwrap();
    let slots: Vec<Option<SlotId>> =
        (0..rows.len()).map(|i| if replace { table.find(hashes[i], keys.row(i)) } else { None }).collect();
    let times: Vec<i64> = rows.iter().map(|r| r.1).collect();
    let values: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|r| Some(r.2)).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|r| Some(format!("a text of some length, {}", r.2))).collect::<StringViewArray>()),
    ];
    table.put(&slots, NewRows { keys: &keys, hashes: &hashes, times_us: &times, values }).unwrap()
}

fn contents(table: &Table) -> Vec<(i64, i64, i64)> {
    let slots: Vec<SlotId> = table.slots().collect();
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
    table.remove(newest);
    assert_eq!(contents(&table), [(1, 10, 100), (2, 10, 200)]);
    table.remove(slots[0]);
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
    assert!(table.chunks.iter().flatten().count() <= 2 * CHUNKS_PER_SIZE, "{}", table.chunks.len());
    assert!(table.bytes() < 200_000, "{}", table.bytes());
}

proptest! {
    /// Whatever is put, removed and falls due, the table holds what a map of rows would hold.
    #[test]
    fn it_is_a_map(steps in proptest::collection::vec((0u8..3, 0i64..20, 0i64..300_000, 0i64..1000), 1..200)) {
        let mut table = table();
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
                    let found = table.find(hash, encoded.row(0));
                    prop_assert_eq!(found.is_some(), model.remove(&key).is_some());
                    found.into_iter().for_each(|slot| table.remove(slot));
                }
                _ => {
                    let due = table.due(time);
                    prop_assert_eq!(due.len(), model.values().filter(|row| row.0 <= time).count());
                    due.into_iter().for_each(|slot| table.remove(slot));
                    model.retain(|_, row| row.0 > time);
                }
            }
            let mut expected: Vec<_> = model.iter().map(|(k, (t, v))| (*k, *t, *v)).collect();
            expected.sort_unstable();
            prop_assert_eq!(contents(&table), expected);
            prop_assert_eq!(table.len(), model.len());
        }
    }
}
