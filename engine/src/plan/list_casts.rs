//! Casts of lists to lists of a fixed size see arrays that begin at their beginning.
//!
//! The cast of arrow 59 reads a sliced array from its values' beginning, and gives the values of other rows, or panics
//! (<https://github.com/apache/arrow-rs/issues/10975>). Every batch that was cut is sliced: by a filter, a limit, a split. So
//! the cast gets a copy of its argument, [`InOnePiece`].

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, MutableArrayData, make_array};
use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::DFSchema;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::utils::merge_schema;
use datafusion::logical_expr::{
    Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF,
    ScalarUDFImpl, Signature, TryCast, Volatility,
};

/// Puts [`InOnePiece`] below every such cast of a plan that is optimised: type coercion makes casts, too.
pub(super) fn cast_in_one_piece(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|plan| {
        let mut found = false;
        plan.apply_expressions(|expr| {
            found |= expr.exists(|expr| Ok(is_cast_to_fixed_size(expr)))?;
            Ok(TreeNodeRecursion::Continue)
        })?;
        if !found {
            return Ok(Transformed::no(plan));
        }
        let schema = merge_schema(&plan.inputs());
        let names = NamePreserver::new(&plan);
        plan.map_expressions(|expr| {
            let name = names.save(&expr);
            let cast = expr.transform_up(|expr| in_one_piece(expr, &schema))?;
            Ok(cast.update_data(|expr| name.restore(expr)))
        })
    })
    .data()
}

fn is_cast_to_fixed_size(expr: &Expr) -> bool {
    match expr {
        Expr::Cast(cast) => has_fixed_size_list(cast.field.data_type()),
        Expr::TryCast(cast) => has_fixed_size_list(cast.field.data_type()),
        _ => false,
    }
}

fn in_one_piece(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let copied = |of: Box<Expr>| -> Result<Transformed<Box<Expr>>> {
        let done = matches!(of.as_ref(), Expr::ScalarFunction(call) if call.func.inner().is::<InOnePiece>());
        if done || !has_list(&of.get_type(schema)?) {
            return Ok(Transformed::no(of));
        }
        Ok(Transformed::yes(Box::new(ScalarUDF::from(InOnePiece::default()).call(vec![*of]))))
    };
    if !is_cast_to_fixed_size(&expr) {
        return Ok(Transformed::no(expr));
    }
    Ok(match expr {
        Expr::Cast(Cast { expr, field }) => copied(expr)?.update_data(|expr| Expr::Cast(Cast { expr, field })),
        Expr::TryCast(TryCast { expr, field }) => {
            copied(expr)?.update_data(|expr| Expr::TryCast(TryCast { expr, field }))
        }
        other => Transformed::no(other),
    })
}

/// Whether a type is a list of a fixed size, or holds one.
fn has_fixed_size_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::FixedSizeList(..)) || held_by(data_type).into_iter().any(has_fixed_size_list)
}

/// Whether a type is a list of any size, or holds one.
fn has_list(data_type: &DataType) -> bool {
    matches!(data_type, DataType::List(_) | DataType::LargeList(_)) || held_by(data_type).into_iter().any(has_list)
}

fn held_by(data_type: &DataType) -> Vec<&DataType> {
    match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => vec![field.data_type()],
        DataType::Struct(fields) => fields.iter().map(|field| field.data_type()).collect(),
        DataType::Union(fields, _) => fields.iter().map(|(_, field)| field.data_type()).collect(),
        DataType::Dictionary(_, values) => vec![values],
        _ => vec![],
    }
}

/// Its argument, copied into arrays that nothing was cut off from.
#[derive(Debug, PartialEq, Eq, Hash)]
struct InOnePiece {
    signature: Signature,
}

impl Default for InOnePiece {
    fn default() -> Self {
        InOnePiece { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for InOnePiece {
    fn name(&self) -> &str {
        "in_one_piece"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        let [data_type] = arg_types else { return Err(one_argument()) };
        Ok(data_type.clone())
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        let [field] = args.arg_fields else { return Err(one_argument()) };
        Ok(Arc::clone(field))
    }

    fn is_strict(&self) -> bool {
        true
    }

    fn invoke_with_args(&self, mut args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        Ok(match args.args.pop().ok_or_else(one_argument)? {
            ColumnarValue::Array(array) => ColumnarValue::Array(copy(&array)?),
            // What a scalar holds is an array of one row, which may be cut out of others.
            ColumnarValue::Scalar(value) => {
                let copied = copy(&value.to_array()?)?;
                ColumnarValue::Scalar(datafusion::common::ScalarValue::try_from_array(&copied, 0)?)
            }
        })
    }
}

fn copy(array: &ArrayRef) -> Result<ArrayRef> {
    let data = array.to_data();
    let mut copied = MutableArrayData::new(vec![&data], false, array.len());
    copied.try_extend(0, 0, array.len())?;
    Ok(make_array(copied.freeze()))
}

fn one_argument() -> DataFusionError {
    DataFusionError::Internal("in_one_piece has one argument".into())
}
