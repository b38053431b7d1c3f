//! `random()` and `uuid()` give the same values when a batch is run again.
//!
//! A batch that falls between the sink's commit and its own is repeated, and must then keep and drop the same rows. So
//! what is drawn is deterministic: it is computed from
//!
//! ```text
//! the query's id, the number and time of the batch        which its entry in the offset log holds
//! the call's place in the query                           two calls draw two values
//! the row's number: its partition and its place there     NumberRowsNode, below the node that draws
//! ```
//!
//! A function of a column is nothing that DataFusion must treat with care: it may compute it where it likes, once or twice.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::{ArrayRef, AsArray, Float64Array, StringArray};
use arrow::datatypes::{DataType, UInt64Type};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::Result;
use datafusion::functions::math::random::RandomFunc;
use datafusion::functions::string::uuid::UuidFunc;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, Extension, Join, LogicalPlan, Projection, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, TypeSignature, Volatility,
};
use twox_hash::XxHash64;
use uuid::{Builder, Uuid};

use super::node::number_rows::NumberRowsNode;
use crate::id::{BatchId, QueryId};

/// What the running batch draws by. The driver sets it before each batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchSeed(Arc<[AtomicU64; 2]>);

impl BatchSeed {
    pub(crate) fn set(&self, query: QueryId, batch: BatchId, time_ms: i64) {
        let mut bytes = query.0.as_bytes().to_vec();
        bytes.extend(batch.0.to_le_bytes());
        bytes.extend(time_ms.to_le_bytes());
        for (half, seed) in self.0.iter().zip(0..) {
            half.store(XxHash64::oneshot(seed, &bytes), Ordering::Release);
        }
    }

    fn get(&self) -> [u64; 2] {
        [&self.0[0], &self.0[1]].map(|half| half.load(Ordering::Acquire))
    }
}

/// What is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// A number from 0 up to 1.
    Random,
    /// A UUID, version 4.
    Uuid,
}

/// Which of DataFusion's functions that draw this is, if it is one. A function of the user's under the same name is none.
fn kind_of(function: &ScalarUDF) -> Option<Kind> {
    let function = function.inner();
    match (function.downcast_ref::<RandomFunc>(), function.downcast_ref::<UuidFunc>()) {
        (Some(_), _) => Some(Kind::Random),
        (_, Some(_)) => Some(Kind::Uuid),
        _ => None,
    }
}

fn draws(expr: &Expr) -> Result<bool> {
    expr.exists(|expr| Ok(matches!(expr, Expr::ScalarFunction(f) if kind_of(&f.func).is_some())))
}

/// Replaces every function that draws, subqueries included. Also says whether there was any.
pub(crate) fn draw_by_batch(plan: LogicalPlan, seed: &BatchSeed) -> Result<(LogicalPlan, bool)> {
    let mut places = Places { seed: seed.clone(), calls: 0, inputs: 0 };
    let plan = plan.transform_up_with_subqueries(|plan| {
        let mut found = false;
        plan.apply_expressions(|expr| {
            found |= draws(expr)?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        match found {
            true => Ok(Transformed::yes(places.replace(plan)?)),
            false => Ok(Transformed::no(plan)),
        }
    });
    Ok((plan.data()?, places.calls > 0))
}

/// Tells the places of a query apart: in the order of the plan, so that every start numbers them alike.
struct Places {
    seed: BatchSeed,
    calls: u64,
    inputs: usize,
}

impl Places {
    /// The node over numbered inputs, drawing by their numbers, with the columns it had before.
    fn replace(&mut self, plan: LogicalPlan) -> Result<LogicalPlan> {
        let columns = plan.schema().columns();
        let plan = match plan {
            LogicalPlan::Join(join) => self.join(join)?,
            plan => {
                let [input] = plan.inputs()[..] else { return Ok(plan) };
                let (input, number) = self.numbered(input.clone())?;
                let plan = plan.with_new_exprs(plan.expressions(), vec![input])?;
                // Output columns keep the name the user's query gives them.
                let names = NamePreserver::new(&plan);
                plan.map_expressions(|expr| {
                    let name = names.save(&expr);
                    Ok(self.draw(expr, std::slice::from_ref(&number))?.update_data(|expr| name.restore(expr)))
                })
                .data()?
            }
        };
        if plan.schema().fields().len() == columns.len() {
            return Ok(plan);
        }
        let columns = columns.into_iter().map(Expr::Column).collect();
        Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(plan))?))
    }

    /// Of a join, a key draws by the rows of its side, and a condition by pairs.
    fn join(&mut self, join: Join) -> Result<LogicalPlan> {
        let (left, of_left) = self.numbered(Arc::unwrap_or_clone(join.left))?;
        let (right, of_right) = self.numbered(Arc::unwrap_or_clone(join.right))?;
        let mut on = vec![];
        for (left, right) in join.on {
            let left = self.draw(left, std::slice::from_ref(&of_left))?.data;
            on.push((left, self.draw(right, std::slice::from_ref(&of_right))?.data));
        }
        let filter = join.filter.map(|filter| self.draw(filter, &[of_left, of_right])).transpose()?;
        let joined = Join::try_new(
            Arc::new(left),
            Arc::new(right),
            on,
            filter.map(|filter| filter.data),
            join.join_type,
            join.join_constraint,
            join.null_equality,
            join.null_aware,
        )?;
        Ok(LogicalPlan::Join(joined))
    }

    fn numbered(&mut self, input: LogicalPlan) -> Result<(LogicalPlan, Expr)> {
        let node = NumberRowsNode::try_new(input, self.inputs)?;
        self.inputs += 1;
        let number = node.number();
        Ok((LogicalPlan::Extension(Extension { node: Arc::new(node) }), number))
    }

    fn draw(&mut self, expr: Expr, by: &[Expr]) -> Result<Transformed<Expr>> {
        expr.transform_up(|expr| {
            let Expr::ScalarFunction(call) = &expr else { return Ok(Transformed::no(expr)) };
            let Some(kind) = kind_of(&call.func) else { return Ok(Transformed::no(expr)) };
            let signature = Signature::new(TypeSignature::Any(by.len()), Volatility::Stable);
            let function = Drawn { kind, call: self.calls, seed: self.seed.clone(), signature };
            self.calls += 1;
            Ok(Transformed::yes(ScalarUDF::from(function).call(by.to_vec())))
        })
    }
}

/// What a call draws for the row, or the pair of rows, whose numbers it is given.
#[derive(Debug)]
pub(crate) struct Drawn {
    kind: Kind,
    /// Which call of the query it is.
    call: u64,
    seed: BatchSeed,
    signature: Signature,
}

impl PartialEq for Drawn {
    fn eq(&self, other: &Self) -> bool {
        (self.kind, self.call) == (other.kind, other.call) && Arc::ptr_eq(&self.seed.0, &other.seed.0)
    }
}

impl Eq for Drawn {}

impl Hash for Drawn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.kind, self.call).hash(state);
    }
}

impl ScalarUDFImpl for Drawn {
    fn name(&self) -> &str {
        match self.kind {
            Kind::Random => "random_of_row",
            Kind::Uuid => "uuid_of_row",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(match self.kind {
            Kind::Random => DataType::Float64,
            Kind::Uuid => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let seeds = self.seed.get();
        let numbers = ColumnarValue::values_to_arrays(&args.args)?;
        let numbers: Vec<&[u64]> =
            numbers.iter().map(|numbers| numbers.as_primitive::<UInt64Type>().values().as_ref()).collect();
        let rows = numbers.first().map_or(0, |numbers| numbers.len());
        let drawn = |row: usize| {
            let words = std::iter::once(self.call).chain(numbers.iter().map(|numbers| numbers[row]));
            seeds.map(|seed| words.clone().fold(seed, |hash, word| XxHash64::oneshot(hash, &word.to_le_bytes())))
        };
        let values: ArrayRef = match self.kind {
            // 53 bits are what a float has.
            Kind::Random => Arc::new(Float64Array::from_iter_values(
                (0..rows).map(|row| (drawn(row)[0] >> 11) as f64 / (1_u64 << 53) as f64),
            )),
            Kind::Uuid => Arc::new(StringArray::from_iter_values((0..rows).map(|row| {
                let [high, low] = drawn(row);
                let bits = Uuid::from_u64_pair(high, low).into_bytes();
                Builder::from_random_bytes(bits).into_uuid().to_string()
            }))),
        };
        Ok(ColumnarValue::Array(values))
    }
}
