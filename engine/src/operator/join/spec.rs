//! What the plan fixes of a join: keys, conditions, and what each side is kept for.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, new_null_array};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::JoinType;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;

use crate::error::Error;
use crate::operator::output::record_batch_with_schema;
use crate::state::StateSchema;
use crate::watermark::{JoinBounds, SideBound};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

impl Side {
    pub(super) fn other(self) -> Side {
        match self {
            Side::Left => Side::Right,
            Side::Right => Side::Left,
        }
    }

    /// As it stands in the files of the state.
    pub(super) fn number(self) -> u8 {
        match self {
            Side::Left => 0,
            Side::Right => 1,
        }
    }
}

/// What rows come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinOutput {
    /// Every pair that matches; and of sides that keep unmatched rows, these, padded with NULL.
    Pairs,
    /// Rows of one side: those that have a match, at the first one; or (anti) those that have none, at last.
    Rows { of: Side, matched: bool },
}

/// When a row of a side is due.
#[derive(Debug, Clone)]
pub(crate) enum Expiry {
    Never,
    /// At the time that a key holds.
    Key(usize, FieldRef),
    /// At the time in a column.
    Column(usize),
}

impl Expiry {
    pub(super) fn column(&self) -> Option<usize> {
        match self {
            Expiry::Column(column) => Some(*column),
            Expiry::Never | Expiry::Key(..) => None,
        }
    }
}

/// One side of a join.
#[derive(Debug)]
pub(crate) struct SideSpec {
    pub(crate) schema: SchemaRef,
    pub(crate) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The column by which rows are late.
    pub(crate) event_time: Option<usize>,
    /// The key by which rows are late, if it is not their event time: what they could match is gone.
    pub(crate) late_by_key: Option<(usize, FieldRef)>,
    pub(crate) expiry: Expiry,
    pub(crate) bound: SideBound,
    /// Those conditions that speak of this side only: a row that fails them matches nothing.
    pub(crate) local_predicate: Option<Arc<dyn PhysicalExpr>>,
    /// A row with NULL in one of these columns fails the condition on pairs, whatever it meets.
    pub(crate) not_null: Vec<usize>,
    /// Rows that never find a match come out, too.
    pub(crate) keeps_unmatched: bool,
}

/// A join of two streams as it was planned.
#[derive(Debug)]
pub(crate) struct JoinSpec {
    pub(crate) join_type: JoinType,
    pub(crate) emits: JoinOutput,
    pub(crate) left: SideSpec,
    pub(crate) right: SideSpec,
    /// The same for both sides.
    pub(crate) key_fields: Vec<FieldRef>,
    pub(crate) nulls_match: bool,
    /// What must hold for a pair with equal keys.
    pub(crate) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns of a pair: left, then right.
    pub(crate) pairs: SchemaRef,
    pub(crate) output: SchemaRef,
    pub(crate) bounds: JoinBounds,
}

impl JoinSpec {
    pub(super) fn side(&self, side: Side) -> &SideSpec {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }

    /// What is kept: rows of both sides in one file, each in the column of its side.
    pub(super) fn spec(&self) -> StateSchema {
        let field = |name: &str, of_type| -> FieldRef { Arc::new(Field::new(name, of_type, true)) };
        let time = |side: &SideSpec| match &side.expiry {
            Expiry::Never => "never".to_owned(),
            Expiry::Key(key, _) => format!("key {key}"),
            Expiry::Column(column) => side.schema.field(*column).name().clone(),
        };
        StateSchema {
            operator: "join",
            keys: self.key_fields.clone(),
            id: vec![field("side", DataType::UInt8), field("row", DataType::UInt64)],
            values: vec![
                field("left", DataType::Struct(kept_fields(&self.left.schema))),
                field("right", DataType::Struct(kept_fields(&self.right.schema))),
                field("matched", DataType::Boolean),
            ],
            description: vec![
                format!("{} join", name_of(self.join_type)),
                format!("left rows by {}", time(&self.left)),
                format!("right rows by {}", time(&self.right)),
            ],
            wrong_before: vec![],
            eviction_bounds: 2,
        }
    }

    /// The columns of pairs in their order, given those of `side` and of the other.
    pub(super) fn in_order(&self, side: Side, own: Vec<ArrayRef>, other: Vec<ArrayRef>) -> Vec<ArrayRef> {
        let (mut first, second) = match side {
            Side::Left => (own, other),
            Side::Right => (other, own),
        };
        first.extend(second);
        first
    }

    /// Rows of one side without a match, as they come out.
    pub(super) fn unmatched(&self, side: Side, columns: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let columns = match self.emits {
            JoinOutput::Rows { .. } => columns,
            JoinOutput::Pairs => {
                let absent = self.side(side.other()).schema.fields().iter();
                let nulls = absent.map(|field| new_null_array(field.data_type(), rows)).collect();
                self.in_order(side, columns, nulls)
            }
        };
        record_batch_with_schema(&self.output, columns, rows)
    }
}

/// The columns of a side as they are kept in files, where each may be absent.
pub(super) fn kept_fields(schema: &SchemaRef) -> Fields {
    schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true)).collect()
}

/// For which rows a condition is true: NULL is not.
pub(super) fn holds(condition: &Arc<dyn PhysicalExpr>, rows: &RecordBatch) -> Result<BooleanArray> {
    let holds = condition.evaluate(rows)?.into_array(rows.num_rows())?;
    let Some(holds) = holds.as_boolean_opt() else {
        return Err(Error::internal(format!("the join condition {condition} is not boolean")).into());
    };
    Ok(if holds.null_count() == 0 { holds.clone() } else { prep_null_mask_filter(holds) })
}

/// How a join is called in a checkpoint.
fn name_of(how: JoinType) -> &'static str {
    match how {
        JoinType::Inner => "Inner",
        JoinType::Left => "Left",
        JoinType::Right => "Right",
        JoinType::Full => "Full",
        JoinType::LeftSemi => "LeftSemi",
        JoinType::RightSemi => "RightSemi",
        JoinType::LeftAnti => "LeftAnti",
        JoinType::RightAnti => "RightAnti",
        JoinType::LeftMark => "LeftMark",
        JoinType::RightMark => "RightMark",
    }
}
