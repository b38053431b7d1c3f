//! What an operator keeps: the columns of its files, and whether another release of the query can go on from them.
//!
//! ```text
//! │ removed │ keys … │ id … │ time │ values … │        one row per change
//! ```
//!
//! `removed` (Boolean): the row is taken away. `keys`: they decide the partition. `id`: what else makes a row unique.
//! `time` (Int64): the µs since 1970 at which the row is due; null for never. `values`: null where `removed`.
//!
//! Of changes to one row (same keys and id) the newest counts. The time of a row never decreases from one change to the
//! next, and a removal has the time of what it removes: so when the newest is behind the bound, all are.

use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, new_null_array};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::error::Result;
use serde::{Deserialize, Serialize};

use super::spelling::{normalize_keys, plain, plain_type, shrink_to_fit};
use super::store::NEVER;
use super::type_names::type_name;

/// The schema of an operator's state, and what else must stay the same for it to be continued.
#[derive(Debug, Clone)]
pub(crate) struct StateSchema {
    /// What kind of operator it is.
    pub(crate) operator: &'static str,
    /// The columns that decide the partition.
    pub(crate) keys: Vec<FieldRef>,
    /// Further columns that make a row unique.
    pub(crate) id: Vec<FieldRef>,
    /// What is kept per row.
    pub(crate) values: Vec<FieldRef>,
    /// What the operator does, as far as it gives meaning to the values.
    pub(crate) description: Vec<String>,
    /// Parts of it of which releases before [`REVISION`] kept something wrong.
    pub(crate) wrong_before: Vec<String>,
    /// How many bounds of eviction it has; with two, the first column of `id` (`UInt8`) says which.
    pub(crate) eviction_bounds: usize,
}

impl StateSchema {
    /// The columns of a file of changes.
    pub(crate) fn file_schema(&self) -> SchemaRef {
        let plain = |name: String, field: &FieldRef| Field::new(name, plain_type(field.data_type()), true);
        let mut fields = vec![Field::new("removed", DataType::Boolean, false)];
        fields.extend(self.keys.iter().enumerate().map(|(i, f)| plain(format!("key.{i}.{}", f.name()), f)));
        fields.extend(self.id.iter().map(|f| plain(format!("id.{}", f.name()), f)));
        fields.push(Field::new("time", DataType::Int64, true));
        fields.extend(self.values.iter().enumerate().map(|(i, f)| plain(format!("value.{i}.{}", f.name()), f)));
        Arc::new(Schema::new(fields))
    }

    /// Which columns of a file are keys and id.
    pub(crate) fn unique_columns(&self) -> std::ops::Range<usize> {
        1..self.time_column()
    }

    /// The column of a file that has the time.
    pub(crate) fn time_column(&self) -> usize {
        1 + self.keys.len() + self.id.len()
    }

    /// Changes to some rows: as many keys, ids, times and values each. A removal has no values.
    pub(crate) fn change(
        &self,
        removed: bool,
        keys: Vec<ArrayRef>,
        id: Vec<ArrayRef>,
        times_us: &[i64],
        values: Option<Vec<ArrayRef>>,
    ) -> Result<RecordBatch> {
        let rows = times_us.len();
        let values =
            values.unwrap_or_else(|| self.values.iter().map(|field| new_null_array(field.data_type(), rows)).collect());
        let times: Int64Array = times_us.iter().map(|&us| (us != NEVER).then_some(us)).collect();
        let mut columns: Vec<ArrayRef> = vec![Arc::new(BooleanArray::from(vec![removed; rows]))];
        columns.extend(normalize_keys(&keys)?);
        columns.extend(id);
        columns.push(Arc::new(times));
        columns.extend(values);
        // What is written holds the values of these rows and no others.
        let columns = columns.iter().map(|column| shrink_to_fit(&plain(column)?)).collect::<Result<_>>()?;
        Ok(RecordBatch::try_new(self.file_schema(), columns)?)
    }

    /// What is persisted of it in the checkpoint; `meaning` is what [the plan](crate::plan) knows of its keys and
    /// values.
    pub(crate) fn to_persisted(&self, meaning: &[String]) -> PersistedStateSchema {
        let columns = |fields: &[FieldRef]| {
            fields
                .iter()
                .map(|f| PersistedColumn { name: f.name().clone(), of_type: type_name(f.data_type()) })
                .collect()
        };
        PersistedStateSchema {
            operator: self.operator.to_owned(),
            keys: columns(&self.keys),
            id: columns(&self.id),
            values: columns(&self.values),
            description: self.description.clone(),
            revision: REVISION,
            wrong_before: self.wrong_before.clone(),
            meaning: meaning.to_vec(),
            written_by: Some(WrittenBy::this()),
        }
    }
}

/// Raised when a release finds that older ones kept something wrong.
const REVISION: u32 = 1;

/// A [`StateSchema`] as it is persisted in the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PersistedStateSchema {
    pub(crate) operator: String,
    pub(crate) keys: Vec<PersistedColumn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) id: Vec<PersistedColumn>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) values: Vec<PersistedColumn>,
    #[serde(default, rename = "describe", skip_serializing_if = "Vec::is_empty")]
    pub(crate) description: Vec<String>,
    #[serde(default)]
    pub(crate) revision: u32,
    /// See [`StateSchema::wrong_before`].
    #[serde(skip)]
    pub(crate) wrong_before: Vec<String>,
    /// The versions that write it. Nothing is refused for them.
    #[serde(default, rename = "writtenBy", skip_serializing_if = "Option::is_none")]
    pub(crate) written_by: Option<WrittenBy>,
    /// What keys and values are, followed down to the sources. Checkpoints of 0.1.0 do not have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) meaning: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PersistedColumn {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) of_type: String,
}

/// The versions of what wrote partial state, whose form is DataFusion's affair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WrittenBy {
    pub(crate) engine: String,
    pub(crate) datafusion: String,
}

impl WrittenBy {
    pub(super) fn this() -> Self {
        WrittenBy {
            engine: env!("CARGO_PKG_VERSION").to_owned(),
            datafusion: datafusion::DATAFUSION_VERSION.to_owned(),
        }
    }
}
