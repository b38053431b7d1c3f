//! How a join of two streams becomes an operator: its equal keys, what speaks of one side alone, and of pairs.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Fields, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::{Column, DFSchema, JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Join, Operator};
use datafusion::physical_expr::expressions::cast;
use datafusion::physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion::physical_plan::ExecutionPlan;

use super::node::join::StreamJoinNode;
use crate::error::Error;
use crate::operator::join::StreamJoinExec;
use crate::operator::join::spec::{Expiry, JoinOutput, JoinSpec, Side, SideSpec};
use crate::state::key_hash::can_be_key;
use crate::watermark::{JoinBounds, KeyTime, SideBound};

/// The operator for a [`StreamJoinNode`], over exchanges of both inputs into so many partitions.
pub(super) fn plan_stream_join(
    node: &StreamJoinNode,
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    session: &dyn Session,
    planning: &PhysicalPlanningContext,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let spec = join_spec(node, (left.schema(), right.schema()), &|expr, schema| {
        create_physical_expr(expr, schema, session.execution_props(), planning)
    })?;
    Ok(Arc::new(StreamJoinExec::over(spec, left, right, partitions)))
}

/// Makes an expression over the columns of a schema physical.
type Physical<'a> = &'a dyn Fn(&Expr, &DFSchema) -> Result<Arc<dyn PhysicalExpr>>;

fn join_spec(node: &StreamJoinNode, (left, right): (SchemaRef, SchemaRef), physical: Physical<'_>) -> Result<JoinSpec> {
    use JoinType::{Full, Left, LeftAnti, LeftSemi, Right, RightAnti, RightSemi};
    let StreamJoinNode { join, bounds } = node;
    let how = join.join_type;
    let (left_schema, right_schema) = (join.left.schema(), join.right.schema());
    let keys = equal_keys(join, &left, &right, physical)?;
    let conditions = split_conditions(join);
    let optional = |conditions: &[Expr], schema: &DFSchema| {
        conjunction(conditions.to_vec()).map(|condition| physical(&condition, schema)).transpose()
    };
    let of_left = SideSpec {
        keys: keys.left,
        event_time: bounds.left_time,
        late_by_key: late_by_key(bounds, |key| key.left_marked),
        expiry: expiry(bounds.left, bounds),
        bound: bounds.left,
        local_predicate: optional(&conditions.left, left_schema)?,
        not_null: columns_not_null(&conditions.pairs, left_schema),
        keeps_unmatched: matches!(how, Left | Full | LeftAnti),
        schema: left,
    };
    let of_right = SideSpec {
        keys: keys.right,
        event_time: bounds.right_time,
        late_by_key: late_by_key(bounds, |key| key.right_marked),
        expiry: expiry(bounds.right, bounds),
        bound: bounds.right,
        local_predicate: optional(&conditions.right, right_schema)?,
        not_null: columns_not_null(&conditions.pairs, right_schema),
        keeps_unmatched: matches!(how, Right | Full | RightAnti),
        schema: right,
    };
    let fields = of_left.schema.fields().iter().chain(of_right.schema.fields().iter());
    let pairs = Arc::new(Schema::new(fields.map(Arc::clone).collect::<Fields>()));
    // The schemas are put together only where something is over both: columns of one name would clash.
    let filter = match conditions.pairs.is_empty() {
        true => None,
        false => optional(&conditions.pairs, &left_schema.join(right_schema)?)?,
    };
    Ok(JoinSpec {
        join_type: how,
        emits: match how {
            LeftSemi => JoinOutput::Rows { of: Side::Left, matched: true },
            LeftAnti => JoinOutput::Rows { of: Side::Left, matched: false },
            RightSemi => JoinOutput::Rows { of: Side::Right, matched: true },
            RightAnti => JoinOutput::Rows { of: Side::Right, matched: false },
            _ => JoinOutput::Pairs,
        },
        left: of_left,
        right: of_right,
        key_fields: keys.fields,
        nulls_match: join.null_equality == NullEquality::NullEqualsNull,
        filter,
        pairs,
        output: Arc::new(join.schema.as_arrow().clone()),
        bounds: bounds.clone(),
    })
}

/// What must be equal, on both sides of one type.
struct EqualKeys {
    left: Vec<Arc<dyn PhysicalExpr>>,
    right: Vec<Arc<dyn PhysicalExpr>>,
    fields: Vec<FieldRef>,
}

fn equal_keys(join: &Join, left: &SchemaRef, right: &SchemaRef, physical: Physical<'_>) -> Result<EqualKeys> {
    let mut keys = EqualKeys { left: vec![], right: vec![], fields: vec![] };
    for (left_key, right_key) in &join.on {
        let name = left_key.schema_name().to_string();
        let left_key = physical(left_key, join.left.schema())?;
        let right_key = physical(right_key, join.right.schema())?;
        let of_type = left_key.data_type(left)?;
        if !can_be_key(&of_type) {
            return Err(Error::unsupported(format!("streams cannot be joined on `{name}`, of type {of_type}"))
                .with_hint("cast it to a text or number on both sides")
                .into());
        }
        // Equal keys must have equal hashes, so they are of one type.
        let same = right_key.data_type(right)? == of_type;
        keys.right.push(if same { right_key } else { cast(right_key, right, of_type.clone())? });
        keys.left.push(left_key);
        keys.fields.push(Arc::new(Field::new(name, of_type, true)));
    }
    Ok(keys)
}

/// The conditions of a join beside its equal keys, by what they speak of.
#[derive(Default)]
struct Conditions {
    left: Vec<Expr>,
    right: Vec<Expr>,
    pairs: Vec<Expr>,
}

fn split_conditions(join: &Join) -> Conditions {
    let mut conditions = Conditions::default();
    for condition in join.filter.iter().flat_map(split_conjunction) {
        let speaks_of =
            |schema: &DFSchema| condition.column_refs().into_iter().any(|c| schema.maybe_index_of_column(c).is_some());
        // A volatile condition holds for a pair, not for a row: each pair asks it anew.
        let of = match (speaks_of(join.left.schema()), speaks_of(join.right.schema())) {
            (true, false) if !condition.is_volatile() => &mut conditions.left,
            (false, true) if !condition.is_volatile() => &mut conditions.right,
            _ => &mut conditions.pairs,
        };
        of.push(condition.clone());
    }
    conditions
}

fn expiry(bound: SideBound, bounds: &JoinBounds) -> Expiry {
    match (bound, &bounds.key_time) {
        (SideBound::Range { column, .. }, _) => Expiry::Column(column),
        (SideBound::KeyTime, Some(time)) => Expiry::Key(time.key, Arc::clone(&time.field)),
        _ => Expiry::Never,
    }
}

fn late_by_key(bounds: &JoinBounds, marked: fn(&KeyTime) -> bool) -> Option<(usize, FieldRef)> {
    let key = bounds.key_time.as_ref().filter(|key| !marked(key))?;
    Some((key.key, Arc::clone(&key.field)))
}

/// The columns of one side without which the conditions on pairs cannot be true.
fn columns_not_null(of_pairs: &[Expr], schema: &DFSchema) -> Vec<usize> {
    let columns = of_pairs.iter().flat_map(columns_that_must_be);
    let mut columns: Vec<usize> = columns.filter_map(|c| schema.maybe_index_of_column(c)).collect();
    columns.sort_unstable();
    columns.dedup();
    columns
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
