//! What the plan fixes of a join: keys, conditions, and what each side is kept for.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, new_null_array};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::common::{Column, DFSchema, JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Operator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::cast;

use crate::error::Error;
use crate::operator::output::record_batch_with_schema;
use crate::plan::node::join::StreamJoinNode;
use crate::state::StateSchema;
use crate::state::key_hash::can_be_key;
use crate::watermark::{JoinBounds, KeyTime, SideBound};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
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
pub(super) enum JoinOutput {
    /// Every pair that matches; and of sides that keep unmatched rows, these, padded with NULL.
    Pairs,
    /// Rows of one side: those that have a match, at the first one; or (anti) those that have none, at last.
    Rows { of: Side, matched: bool },
}

/// When a row of a side is due.
#[derive(Debug, Clone)]
pub(super) enum Expiry {
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
pub(super) struct SideSpec {
    pub(super) schema: SchemaRef,
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    /// The column by which rows are late.
    pub(super) event_time: Option<usize>,
    /// The key by which rows are late, if it is not their event time: what they could match is gone.
    pub(super) late_by_key: Option<(usize, FieldRef)>,
    pub(super) expiry: Expiry,
    pub(super) bound: SideBound,
    /// Those conditions that speak of this side only: a row that fails them matches nothing.
    pub(super) local_predicate: Option<Arc<dyn PhysicalExpr>>,
    /// A row with NULL in one of these columns fails the condition on pairs, whatever it meets.
    pub(super) not_null: Vec<usize>,
    /// Rows that never find a match come out, too.
    pub(super) keeps_unmatched: bool,
}

/// A join of two streams as it was planned.
#[derive(Debug)]
pub(super) struct JoinSpec {
    pub(super) join_type: JoinType,
    pub(super) emits: JoinOutput,
    pub(super) left: SideSpec,
    pub(super) right: SideSpec,
    /// The same for both sides.
    pub(super) key_fields: Vec<FieldRef>,
    pub(super) nulls_match: bool,
    /// What must hold for a pair with equal keys.
    pub(super) filter: Option<Arc<dyn PhysicalExpr>>,
    /// The columns of a pair: left, then right.
    pub(super) pairs: SchemaRef,
    pub(super) output: SchemaRef,
    pub(super) bounds: JoinBounds,
}

/// Makes an expression of one side physical.
type Planned<'a> = &'a dyn Fn(&Expr, &DFSchema) -> Result<Arc<dyn PhysicalExpr>>;

impl JoinSpec {
    /// `physical` makes a physical expression over the columns of a schema.
    pub(super) fn try_new(
        node: &StreamJoinNode,
        (left, right): (SchemaRef, SchemaRef),
        physical: Planned<'_>,
    ) -> Result<JoinSpec> {
        let StreamJoinNode { join, bounds } = node;
        let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
        let (mut left_keys, mut right_keys, mut key_fields) = (vec![], vec![], vec![]);
        for (left_key, right_key) in &join.on {
            let name = left_key.schema_name().to_string();
            let (left_key, right_key) = (physical(left_key, left_schema)?, physical(right_key, right_schema)?);
            let of_type = left_key.data_type(&left)?;
            if !can_be_key(&of_type) {
                return Err(Error::unsupported(format!("streams cannot be joined on `{name}`, of type {of_type}"))
                    .with_hint("cast it to a text or number on both sides")
                    .into());
            }
            let same = right_key.data_type(&right)? == of_type;
            right_keys.push(if same { right_key } else { cast(right_key, &right, of_type.clone())? });
            left_keys.push(left_key);
            key_fields.push(Arc::new(Field::new(name, of_type, true)));
        }

        let (mut left_local, mut right_local, mut of_pairs) = (vec![], vec![], vec![]);
        for condition in join.filter.iter().flat_map(split_conjunction) {
            let speaks_of = |schema: &DFSchema| {
                condition.column_refs().into_iter().any(|c| schema.maybe_index_of_column(c).is_some())
            };
            match (speaks_of(left_schema), speaks_of(right_schema)) {
                (true, false) if !condition.is_volatile() => left_local.push(condition.clone()),
                (false, true) if !condition.is_volatile() => right_local.push(condition.clone()),
                _ => of_pairs.push(condition.clone()),
            }
        }
        let optional = |conditions: Vec<Expr>, schema: &DFSchema| {
            conjunction(conditions).map(|condition| physical(&condition, schema)).transpose()
        };
        let not_null = |schema: &DFSchema| {
            let columns = of_pairs.iter().flat_map(columns_that_must_be);
            let mut columns: Vec<usize> = columns.filter_map(|c| schema.maybe_index_of_column(c)).collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        };
        let expiry = |bound: SideBound| match (bound, &bounds.key_time) {
            (SideBound::Range { column, .. }, _) => Expiry::Column(column),
            (SideBound::KeyTime, Some(time)) => Expiry::Key(time.key, Arc::clone(&time.field)),
            _ => Expiry::Never,
        };
        let late_by_key = |marked: fn(&KeyTime) -> bool| {
            let key = bounds.key_time.as_ref().filter(|key| !marked(key))?;
            Some((key.key, Arc::clone(&key.field)))
        };
        use JoinType::{Full, Left, LeftAnti, LeftSemi, Right, RightAnti, RightSemi};
        let of_left = SideSpec {
            keys: left_keys,
            event_time: bounds.left_time,
            late_by_key: late_by_key(|key| key.left_marked),
            expiry: expiry(bounds.left),
            bound: bounds.left,
            local_predicate: optional(left_local, left_schema)?,
            not_null: not_null(left_schema),
            keeps_unmatched: matches!(join.join_type, Left | Full | LeftAnti),
            schema: left,
        };
        let of_right = SideSpec {
            keys: right_keys,
            event_time: bounds.right_time,
            late_by_key: late_by_key(|key| key.right_marked),
            expiry: expiry(bounds.right),
            bound: bounds.right,
            local_predicate: optional(right_local, right_schema)?,
            not_null: not_null(right_schema),
            keeps_unmatched: matches!(join.join_type, Right | Full | RightAnti),
            schema: right,
        };
        let fields = of_left.schema.fields().iter().chain(of_right.schema.fields().iter());
        let pairs = Arc::new(Schema::new(fields.map(Arc::clone).collect::<Fields>()));
        let filter = match of_pairs.is_empty() {
            true => None,
            false => optional(of_pairs, &left_schema.join(right_schema)?)?,
        };
        Ok(JoinSpec {
            join_type: join.join_type,
            emits: match join.join_type {
                LeftSemi => JoinOutput::Rows { of: Side::Left, matched: true },
                LeftAnti => JoinOutput::Rows { of: Side::Left, matched: false },
                RightSemi => JoinOutput::Rows { of: Side::Right, matched: true },
                RightAnti => JoinOutput::Rows { of: Side::Right, matched: false },
                _ => JoinOutput::Pairs,
            },
            left: of_left,
            right: of_right,
            key_fields,
            nulls_match: join.null_equality == NullEquality::NullEqualsNull,
            filter,
            pairs,
            output: Arc::new(join.schema.as_arrow().clone()),
            bounds: bounds.clone(),
        })
    }

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

/// The columns without which a condition cannot be true, as far as that is easily seen.
fn columns_that_must_be(condition: &Expr) -> Vec<&Column> {
    let mut columns = vec![];
    let known = match condition {
        Expr::Between(between) if !between.negated => {
            [&between.expr, &between.low, &between.high].into_iter().all(|expr| strict(expr, &mut columns))
        }
        other => strict(other, &mut columns),
    };
    if known { columns } else { vec![] }
}

/// Whether an expression is NULL as soon as one of its columns is. Adds these.
fn strict<'e>(expr: &'e Expr, columns: &mut Vec<&'e Column>) -> bool {
    use Operator::{Divide, Eq, Gt, GtEq, Lt, LtEq, Minus, Modulo, Multiply, NotEq, Plus};
    match expr {
        Expr::Column(column) => {
            columns.push(column);
            true
        }
        Expr::Literal(..) => true,
        Expr::Alias(alias) => strict(&alias.expr, columns),
        Expr::Cast(cast) => strict(&cast.expr, columns),
        Expr::BinaryExpr(binary) => {
            let strict_op =
                matches!(binary.op, Plus | Minus | Multiply | Divide | Modulo | Eq | NotEq | Lt | LtEq | Gt | GtEq);
            strict_op && strict(&binary.left, columns) && strict(&binary.right, columns)
        }
        _ => false,
    }
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
