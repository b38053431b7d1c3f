//! `now()` and its kin read the batch's clock.
//!
//! A plan is made once and run for every batch, and a batch may be run twice: both must see the time at which the batch
//! was first planned, which its entry in the offset log holds. DataFusion folds `now()` to a constant when it plans, so
//! the functions are replaced by our own before it does. Dates and times of day are those of the session's time zone.

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use arrow::array::timezone::Tz;
use arrow::array::{ArrayRef, TimestampMillisecondArray};
use arrow::compute::kernels::cast::cast;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::functions::datetime::current_date::CurrentDateFunc;
use datafusion::functions::datetime::current_time::CurrentTimeFunc;
use datafusion::functions::datetime::now::NowFunc;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{
    ColumnarValue, Expr, ExprSchemable, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility,
};

/// Whether a function is one of DataFusion's that return the time; `current_timestamp` and `today` are other names for them.
/// A function of the user's under the same name is none.
pub(super) fn returns_time(function: &ScalarUDF) -> bool {
    let function = function.inner();
    function.is::<NowFunc>() || function.is::<CurrentDateFunc>() || function.is::<CurrentTimeFunc>()
}

/// The clock of a query's running batch, in milliseconds since 1970. The driver sets it before each batch.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchClock(Arc<AtomicI64>);

impl BatchClock {
    pub(crate) fn set_ms(&self, time_ms: i64) {
        self.0.store(time_ms, Ordering::Release);
    }
}

/// Replaces every clock function of the plan, subqueries included. `zone` is the session's time zone.
pub(crate) fn read_batch_clock(plan: LogicalPlan, clock: &BatchClock, zone: Option<&str>) -> Result<LogicalPlan> {
    // What names no zone is UTC, as in DataFusion.
    let zone: Arc<str> = zone.filter(|zone| zone.parse::<Tz>().is_ok()).unwrap_or("+00:00").into();
    plan.transform_up_with_subqueries(|plan| {
        let schema = Arc::clone(plan.schema());
        // Output columns keep the name the user's query gives them.
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let replaced = expr.transform_up(|expr| match expr {
                Expr::ScalarFunction(f) if returns_time(&f.func) => {
                    let data_type = Expr::ScalarFunction(f).get_type(&schema)?;
                    let zone = Arc::clone(&zone);
                    let function = BatchTime { data_type, zone, clock: clock.clone(), signature: nullary() };
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
    /// Where the date and the time of day are read off.
    zone: Arc<str>,
    clock: BatchClock,
    signature: Signature,
}

impl PartialEq for BatchTime {
    fn eq(&self, other: &Self) -> bool {
        (&self.data_type, &self.zone) == (&other.data_type, &other.zone) && Arc::ptr_eq(&self.clock.0, &other.clock.0)
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
        let now: ArrayRef =
            Arc::new(TimestampMillisecondArray::from(vec![time_ms]).with_timezone(Arc::clone(&self.zone)));
        let value = ScalarValue::try_from_array(&cast(&now, &self.data_type)?, 0)?;
        Ok(ColumnarValue::Scalar(value))
    }
}
