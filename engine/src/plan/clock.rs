//! `now()` and its kin read the batch's clock.
//!
//! A plan is made once and run for every batch, and a batch may be run twice: both must see the time at which the batch
//! was first planned, which its entry in the offset log holds. DataFusion folds `now()` to a constant when it plans, so
//! the functions are replaced by our own before it does.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::{ArrayRef, TimestampMillisecondArray};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// DataFusion's functions that tell the time; `current_timestamp` and `today` are other names for them.
const CLOCK_FUNCTIONS: [&str; 3] = ["now", "current_date", "current_time"];

/// The clock of a query's running batch, in milliseconds since 1970. The driver sets it before each batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchClock(Arc<AtomicI64>);

impl BatchClock {
    pub(crate) fn set_ms(&self, time_ms: i64) {
        self.0.store(time_ms, Ordering::Release);
    }
}

/// Replaces every clock function of the plan, subqueries included.
pub(crate) fn read_batch_clock(plan: LogicalPlan, clock: &BatchClock) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        let schema = Arc::clone(plan.schema());
        // Output columns keep the name the user's query gives them.
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let replaced = expr.transform_up(|expr| match expr {
                Expr::ScalarFunction(f) if CLOCK_FUNCTIONS.contains(&f.func.name()) => {
                    let data_type = Expr::ScalarFunction(f).get_type(&schema)?;
                    let function = BatchTime { data_type, clock: clock.clone(), signature: nullary() };
                    Ok(Transformed::yes(ScalarUDF::from(function).call(vec![])))
                }
                other => Ok(Transformed::no(other)),
            })?;
            Ok(replaced.update_data(|expr| name.restore(expr)))
        })
    })
    .data()
}

fn nullary() -> Signature {
    // Stable would be folded to a constant at planning time, too.
    Signature::nullary(Volatility::Volatile)
}

/// The time of the running batch as `data_type`.
#[derive(Debug)]
struct BatchTime {
    data_type: DataType,
    clock: BatchClock,
    signature: Signature,
}

impl PartialEq for BatchTime {
    fn eq(&self, other: &Self) -> bool {
        self.data_type == other.data_type && Arc::ptr_eq(&self.clock.0, &other.clock.0)
    }
}

impl Eq for BatchTime {}

impl Hash for BatchTime {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.data_type.hash(state);
    }
}

impl ScalarUDFImpl for BatchTime {
    fn name(&self) -> &str {
        "batch_time"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn invoke_with_args(&self, _args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let time_ms = self.clock.0.load(Ordering::Acquire);
        let now: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![time_ms]).with_timezone("+00:00"));
        let value = ScalarValue::try_from_array(&cast(&now, &self.data_type)?, 0)?;
        Ok(ColumnarValue::Scalar(value))
    }
}
