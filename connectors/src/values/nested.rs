//! Structs, lists and maps out of JSON documents.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, ListArray, MapArray, StructArray, UInt64Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, FieldRef, Fields};
use arrow::error::ArrowError;

use super::column::{Column, column, unfit};
use super::json::{Kind, Value};

/// Fields by name, with a column for each.
pub(crate) struct Record {
    fields: Fields,
    columns: Vec<Box<dyn Column>>,
    by_name: HashMap<String, usize>,
    rows: usize,
}

impl Record {
    /// An error names the field that no text can be read as.
    pub(crate) fn new(fields: &Fields) -> Result<Self, String> {
        let columns = fields
            .iter()
            .map(|field| column(field.data_type()).map_err(|why| format!("field '{}': {why}", field.name())));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let by_name = fields.iter().enumerate().map(|(i, field)| (field.name().clone(), i)).collect();
        Ok(Record { fields: fields.clone(), columns, by_name, rows: 0 })
    }

    /// How many rows there are since the last [`Self::finish`].
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn append_nulls(&mut self) {
        self.columns.iter_mut().for_each(|column| column.append_null());
        self.rows += 1;
    }

    /// Adds a row of an object: fields that are missing are null, further ones are passed over, and of a name that comes
    /// twice the last counts, though all must fit. An error is the first field that does not; what fits is there.
    pub(crate) fn append_object(&mut self, object: Value<'_>) -> Result<(), String> {
        let mut found: Vec<Option<Value<'_>>> = vec![None; self.columns.len()];
        let (mut likely, mut earlier) = (0, Ok(()));
        for (key, value) in object.entries() {
            let key = key.as_text();
            let is_likely = self.fields.get(likely).is_some_and(|field| *field.name() == *key);
            let place = if is_likely { Some(likely) } else { self.by_name.get(key.as_ref()).copied() };
            if let Some(place) = place {
                likely = place + 1;
                if let (Some(slot), Some(field)) = (found.get_mut(place), self.fields.get(place))
                    && let Some(before) = slot.replace(value)
                {
                    // It is not kept, only looked at.
                    let fits = column(field.data_type()).and_then(|mut column| column.append_json(before));
                    earlier = earlier.and(fits.map_err(|why| format!("field '{}': {why}", field.name())));
                }
            }
        }
        let last = self.append(found, |column, value| column.append_json(value), |value| value.kind() == Kind::Null);
        earlier.and(last)
    }

    /// Adds a row of texts, field by field.
    #[cfg(feature = "file")]
    pub(crate) fn append_texts<'a>(
        &mut self,
        texts: impl Iterator<Item = Option<std::borrow::Cow<'a, str>>>,
    ) -> Result<(), String> {
        let texts: Vec<_> = texts.collect();
        self.append(texts, |column, text| column.append_text(&text), |_| false)
    }

    fn append<V>(
        &mut self,
        values: Vec<Option<V>>,
        add: impl Fn(&mut dyn Column, V) -> Result<(), String>,
        is_null: impl Fn(&V) -> bool,
    ) -> Result<(), String> {
        let mut first = Ok(());
        for ((column, field), value) in self.columns.iter_mut().zip(&self.fields).zip(values) {
            let missing = value.as_ref().is_none_or(&is_null);
            let mut fits = match value {
                Some(value) => add(column.as_mut(), value),
                None => {
                    column.append_null();
                    Ok(())
                }
            };
            if missing && !field.is_nullable() {
                fits = Err("it is null or missing".to_owned());
            }
            if let (Err(why), Ok(())) = (fits, &first) {
                first = Err(format!("field '{}': {why}", field.name()));
            }
        }
        self.rows += 1;
        first
    }

    /// The columns of all rows since the last call.
    pub(crate) fn finish(&mut self) -> Result<Vec<ArrayRef>, ArrowError> {
        self.rows = 0;
        self.columns.iter_mut().map(|column| column.finish()).collect()
    }
}

pub(super) struct Structs {
    record: Record,
    valid: Vec<bool>,
}

impl Structs {
    pub(super) fn new(fields: &Fields) -> Result<Self, String> {
        Ok(Structs { record: Record::new(fields)?, valid: vec![] })
    }
}

impl Column for Structs {
    fn append_null(&mut self) {
        self.record.append_nulls();
        self.valid.push(false);
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.append_null();
        Err(unfit(text, &DataType::Struct(self.record.fields.clone())))
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Object => {
                let fits = self.record.append_object(value);
                // Where a field must not be null, there is no half of a struct.
                self.valid.push(fits.is_ok() || self.record.fields.iter().all(|field| field.is_nullable()));
                fits
            }
            Kind::Null => {
                self.append_null();
                Ok(())
            }
            _ => self.append_text(value.raw()),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let rows = self.record.rows();
        let columns = self.record.finish()?;
        let valid = Some(NullBuffer::from(std::mem::take(&mut self.valid)));
        Ok(Arc::new(StructArray::try_new_with_length(self.record.fields.clone(), columns, valid, rows)?))
    }
}

/// Where in its items each list is.
#[derive(Default)]
struct Spans {
    /// How many items were added for each list, and whether it is one.
    lists: Vec<(usize, bool)>,
}

impl Spans {
    /// The lists of `columns`. What was added for lists that turned out to be none is taken out again.
    fn finish(&mut self, columns: Vec<ArrayRef>) -> Result<(OffsetBuffer<i32>, NullBuffer, Vec<ArrayRef>), ArrowError> {
        let lists = std::mem::take(&mut self.lists);
        let offsets =
            OffsetBuffer::from_lengths(lists.iter().map(|(length, is_list)| if *is_list { *length } else { 0 }));
        let valid = lists.iter().map(|(_, is_list)| *is_list).collect();
        if lists.iter().all(|(length, is_list)| *is_list || *length == 0) {
            return Ok((offsets, valid, columns));
        }
        let (mut kept, mut at) = (vec![], 0_u64);
        for (length, is_list) in lists {
            let end = at + length as u64;
            kept.extend((at..end).filter(|_| is_list));
            at = end;
        }
        let kept = UInt64Array::from(kept);
        let columns = columns.iter().map(|column| take(column, &kept, None)).collect::<Result<_, _>>()?;
        Ok((offsets, valid, columns))
    }
}

pub(super) struct Lists {
    item: FieldRef,
    items: Box<dyn Column>,
    spans: Spans,
}

impl Lists {
    pub(super) fn new(item: &FieldRef) -> Result<Self, String> {
        let items = column(item.data_type())?;
        Ok(Lists { item: Arc::clone(item), items, spans: Spans::default() })
    }
}

impl Column for Lists {
    fn append_null(&mut self) {
        self.spans.lists.push((0, false));
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.append_null();
        Err(unfit(text, &DataType::List(Arc::clone(&self.item))))
    }

    /// As in Spark, a list with one item that does not fit is null as a whole.
    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Array => {}
            Kind::Null => {
                self.append_null();
                return Ok(());
            }
            _ => return self.append_text(value.raw()),
        }
        let (mut length, mut first) = (0, Ok(()));
        for item in value.children() {
            let mut fits = self.items.append_json(item);
            if item.kind() == Kind::Null && !self.item.is_nullable() {
                fits = Err("an item is null".to_owned());
            }
            if first.is_ok() {
                first = fits;
            }
            length += 1;
        }
        self.spans.lists.push((length, first.is_ok()));
        first
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let (offsets, valid, mut columns) = self.spans.finish(vec![self.items.finish()?])?;
        let items = columns.pop().ok_or_else(|| ArrowError::ComputeError("a list without items".to_owned()))?;
        Ok(Arc::new(ListArray::try_new(Arc::clone(&self.item), offsets, items, Some(valid))?))
    }
}

pub(super) struct Maps {
    entries: FieldRef,
    fields: Fields,
    keys: Box<dyn Column>,
    values: Box<dyn Column>,
    spans: Spans,
    nullable_values: bool,
    sorted: bool,
}

impl Maps {
    pub(super) fn new(entries: &FieldRef, sorted: bool) -> Result<Self, String> {
        let DataType::Struct(fields) = entries.data_type() else { return Err("a map without entries".to_owned()) };
        let [key, value] = fields.as_ref() else { return Err("a map without keys and values".to_owned()) };
        let part = |field: &Arc<Field>| column(field.data_type());
        let (keys, values) = (part(key)?, part(value)?);
        let nullable_values = value.is_nullable();
        let (entries, fields, spans) = (Arc::clone(entries), fields.clone(), Spans::default());
        Ok(Maps { entries, fields, keys, values, spans, nullable_values, sorted })
    }
}

impl Column for Maps {
    fn append_null(&mut self) {
        self.spans.lists.push((0, false));
    }

    fn append_text(&mut self, text: &str) -> Result<(), String> {
        self.append_null();
        Err(unfit(text, self.entries.data_type()))
    }

    fn append_json(&mut self, value: Value<'_>) -> Result<(), String> {
        match value.kind() {
            Kind::Object => {}
            Kind::Null => {
                self.append_null();
                return Ok(());
            }
            _ => return self.append_text(value.raw()),
        }
        // Of a key that comes twice the last value counts, though all must fit.
        let mut first = Ok(());
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut entries: Vec<(String, Value<'_>)> = vec![];
        for (key, value) in value.entries() {
            let key = key.as_text().into_owned();
            match places.get(&key).and_then(|place| entries.get_mut(*place)) {
                Some(entry) => {
                    let before = std::mem::replace(&mut entry.1, value);
                    let value_type = self.fields.get(1).map_or(&DataType::Null, |field| field.data_type());
                    let fits = column(value_type).and_then(|mut column| column.append_json(before));
                    first = first.and(fits.map_err(|why| format!("entry '{key}': {why}")));
                }
                None => {
                    places.insert(key.clone(), entries.len());
                    entries.push((key, value));
                }
            }
        }
        for (key, value) in &entries {
            let mut fits = self.keys.append_text(key).and(self.values.append_json(*value));
            if value.kind() == Kind::Null && !self.nullable_values {
                fits = Err("it is null".to_owned());
            }
            if first.is_ok() {
                first = fits.map_err(|why| format!("entry '{key}': {why}"));
            }
        }
        self.spans.lists.push((entries.len(), first.is_ok()));
        first
    }

    fn finish(&mut self) -> Result<ArrayRef, ArrowError> {
        let columns = vec![self.keys.finish()?, self.values.finish()?];
        let (offsets, valid, columns) = self.spans.finish(columns)?;
        let entries = StructArray::try_new(self.fields.clone(), columns, None)?;
        Ok(Arc::new(MapArray::try_new(Arc::clone(&self.entries), offsets, entries, Some(valid), self.sorted)?))
    }
}
