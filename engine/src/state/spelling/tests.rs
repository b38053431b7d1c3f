//! What is kept is values, not what they came in.

use arrow::array::{
    DictionaryArray, Float64Array, Int32Builder, Int64Array, ListArray, MapBuilder, StringArray, StringBuilder,
    StringViewArray,
};
use arrow::datatypes::{Int32Type, Int64Type};

use super::*;

fn texts() -> ArrayRef {
    Arc::new((0..100).map(|i| Some(format!("a text that is longer than a view, {i}"))).collect::<StringViewArray>())
}

fn held(array: &ArrayRef) -> usize {
    array.to_data().buffers().iter().map(|buffer| buffer.len()).sum::<usize>()
        + array.to_data().child_data().iter().map(|child| held(&arrow::array::make_array(child.clone()))).sum::<usize>()
}

fn one_of(array: &ArrayRef) -> ArrayRef {
    take(array, &UInt32Array::from(vec![7]), None).unwrap()
}

#[test]
fn views_let_go_of_what_they_were_cut_from_at_any_depth() {
    let in_struct: ArrayRef =
        Arc::new(StructArray::from(vec![(Arc::new(Field::new("a", DataType::Utf8View, true)), texts())]));
    let item = Arc::new(Field::new_list_field(DataType::Utf8View, true));
    let in_list: ArrayRef =
        Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(vec![2; 50]), texts(), None).unwrap());
    let in_binary = cast(&texts(), &DataType::BinaryView).unwrap();
    for all in [texts(), in_struct, in_list.clone(), in_binary] {
        for few in [one_of(&all), all.slice(7, 1)] {
            let kept = shrink_to_fit(&few).unwrap();
            assert_eq!(&kept, &few);
            assert!(held(&kept) < 200, "{} bytes of {}", held(&kept), held(&few));
        }
    }
    // What has no slack is left alone.
    let all = shrink_to_fit(&texts()).unwrap();
    assert!(Arc::ptr_eq(&shrink_to_fit(&all).unwrap(), &all));
}

#[test]
fn dictionaries_are_their_values() {
    let coded: DictionaryArray<Int32Type> = vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
    let coded: ArrayRef = Arc::new(coded);
    let values: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b"), Some("a")]));
    assert_eq!(&plain(&coded).unwrap(), &values);
    assert_eq!(in_type(&values, coded.data_type()).unwrap().as_ref(), coded.as_ref());
    let item = Arc::new(Field::new_list_field(coded.data_type().clone(), true));
    let lists: ArrayRef =
        Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths([3, 1]), Arc::clone(&coded), None).unwrap());
    let kept = plain(&lists).unwrap();
    assert_eq!(kept.data_type(), &plain_type(lists.data_type()));
    assert_eq!(kept.as_list::<i32>().values(), &values);
    assert_eq!(in_type(&kept, lists.data_type()).unwrap().data_type(), lists.data_type());
    // One value of many.
    let many: ArrayRef = Arc::new((0..100).map(|i| Some(i.to_string())).collect::<StringArray>());
    let many = cast(&many, &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))).unwrap();
    let few = shrink_to_fit(&one_of(&many)).unwrap();
    assert_eq!(few.as_any_dictionary().values().len(), 1);
    assert_eq!(plain(&few).unwrap().as_string::<i32>().value(0), "7");
}

#[test]
fn equal_keys_have_one_spelling() {
    let zeros: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN, 1.0]));
    let bits = |array: &ArrayRef| -> Vec<u64> {
        array.as_primitive::<Float64Type>().values().iter().map(|v| v.to_bits()).collect()
    };
    let one = bits(&normalize_keys(&[Arc::clone(&zeros)]).unwrap()[0]);
    assert_eq!(one[0], one[1]);
    assert_eq!(one[2], one[3]);
    let item = Arc::new(Field::new_list_field(DataType::Float64, true));
    let lists: ArrayRef =
        Arc::new(ListArray::try_new(item, OffsetBuffer::from_lengths(vec![1; 5]), zeros, None).unwrap());
    assert_eq!(bits(normalize_keys(&[lists]).unwrap()[0].as_list::<i32>().values()), one);

    let mut maps = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    for entries in [[("b", 1), ("a", 2)], [("a", 2), ("b", 1)]] {
        for (key, value) in entries {
            maps.keys().append_value(key);
            maps.values().append_value(value);
        }
        maps.append(true).unwrap();
    }
    let maps: ArrayRef = Arc::new(maps.finish());
    let one = normalize_keys(&[maps]).unwrap().remove(0);
    assert_eq!(one.slice(0, 1).as_map().entries(), one.slice(1, 1).as_map().entries());
    let same: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    assert_eq!(normalize_keys(&[Arc::clone(&same)]).unwrap()[0].as_primitive::<Int64Type>().value(0), 1);
}
