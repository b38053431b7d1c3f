//! Aggregate functions whose code is ours, because DataFusion's does not outlive a batch, or is wrong.
//!
//! | aggregate | DataFusion's code | ours |
//! |---|---|---|
//! | `f(DISTINCT x)` | each function knows DISTINCT by itself, or ignores it, or fails; `0.0` and `-0.0` are two | the distinct values, in front of the plain `f` ([`distinct`]) |
//! | `min`, `max` of floats | which of NaN and a number counts depends on the order of the rows | NaN is above all numbers, as in Spark ([`extreme`]) |
//! | `min`, `max` of structs and lists | keeps the whole input behind each value | keeps the value ([`extreme`]) |
//! | what says it can aggregate many groups at once, and cannot (`bit_and` of NULL) | fails | one accumulator per group |
//!
//! The reports upstream: <https://github.com/apache/datafusion/issues/2406> (DISTINCT),
//! <https://github.com/apache/datafusion/issues/22826> (the two zeros), <https://github.com/apache/datafusion/issues/24432>
//! (NaN), <https://github.com/apache/datafusion/pull/24989> (`bit_xor(DISTINCT)`).
//!
//! The function is exchanged in the physical plan, in both steps of the aggregation alike, so what one step writes the other
//! reads. Names and arguments stay what they were.

mod distinct;

mod extreme;

use std::any::Any;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use datafusion::common::not_impl_err;
use datafusion::error::Result;
use datafusion::functions_aggregate::all_default_aggregate_functions;
use datafusion::functions_aggregate::approx_distinct::ApproxDistinct;
use datafusion::functions_aggregate::array_agg::ArrayAgg;
use datafusion::functions_aggregate::average::Avg;
use datafusion::functions_aggregate::bit_and_or_xor::{bit_and_udaf, bit_or_udaf};
use datafusion::functions_aggregate::bool_and_or::{BoolAnd, BoolOr};
use datafusion::functions_aggregate::count::Count;
use datafusion::functions_aggregate::median::Median;
use datafusion::functions_aggregate::min_max::{Max, Min};
use datafusion::functions_aggregate::percentile_cont::PercentileCont;
use datafusion::functions_aggregate::string_agg::StringAgg;
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::{AggregateOrderSensitivity, format_state_name};
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, GroupsAccumulator, Signature};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::Literal;
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use datafusion::scalar::ScalarValue;

use self::distinct::{Argument, DistinctAccumulator};
use self::extreme::{Extreme, OneGroup};

/// The same aggregates over rows of `schema`, with our code where DataFusion's will not do.
pub(crate) fn replace(
    functions: &[Arc<AggregateFunctionExpr>],
    schema: &SchemaRef,
) -> Result<Vec<Arc<AggregateFunctionExpr>>> {
    let replaced = |function: &Arc<AggregateFunctionExpr>| {
        let Some(how) = instead_of(function, schema)? else { return Ok(Arc::clone(function)) };
        let instead = Instead { function: function.fun().clone(), how };
        let mut builder = AggregateExprBuilder::new(Arc::new(AggregateUDF::from(instead)), function.expressions())
            .order_by(function.order_bys().to_vec())
            .schema(Arc::clone(schema))
            .alias(function.name())
            .with_ignore_nulls(function.ignore_nulls())
            .with_distinct(function.is_distinct())
            .with_reversed(function.is_reversed());
        if let Some(text) = function.human_display() {
            builder = builder.human_display(text);
        }
        if let Some(alias) = function.human_display_alias() {
            builder = builder.human_display_alias(alias);
        }
        let ours = builder.build()?;
        // What it cannot do is said before the query starts.
        ours.create_accumulator()?;
        Ok(Arc::new(ours))
    };
    functions.iter().map(replaced).collect()
}

/// Whether a function is DataFusion's own.
pub(crate) fn is_datafusions(function: &AggregateFunctionExpr) -> bool {
    fn code(function: &AggregateUDF) -> std::any::TypeId {
        let code: &dyn Any = function.inner().as_ref();
        code.type_id()
    }
    all_default_aggregate_functions().iter().any(|known| code(known) == code(function.fun()))
}

/// What our code does in the place of a function's own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum How {
    /// Remembers these arguments.
    Distinct(Vec<Argument>),
    Greatest,
    Least,
    /// Its own code, but that for many groups at once.
    GroupByGroup,
}

fn instead_of(function: &AggregateFunctionExpr, schema: &SchemaRef) -> Result<Option<How>> {
    let own = function.fun().inner();
    if extreme::takes(function.field().data_type()) {
        if own.is::<Max>() {
            return Ok(Some(How::Greatest));
        } else if own.is::<Min>() {
            return Ok(Some(How::Least));
        }
    }
    if function.is_distinct() && !is_idempotent(function.fun()) {
        let arguments = arguments(function, schema)?;
        if !knows_distinct(function, &arguments) {
            return Ok(Some(How::Distinct(arguments)));
        }
    }
    let fails = function.groups_accumulator_supported() && function.create_groups_accumulator().is_err();
    Ok(fails.then_some(How::GroupByGroup))
}

/// The arguments of a function: at least one counts as a column.
fn arguments(function: &AggregateFunctionExpr, schema: &SchemaRef) -> Result<Vec<Argument>> {
    let exprs = function.expressions();
    let some_vary = exprs.iter().any(|expr| !expr.is::<Literal>());
    let argument = |(place, expr): (usize, &Arc<dyn PhysicalExpr>)| match expr.downcast_ref::<Literal>() {
        Some(constant) if some_vary || place > 0 => Ok(Argument::Constant(constant.value().clone())),
        _ => Ok(Argument::Column(expr.data_type(schema)?)),
    };
    exprs.iter().enumerate().map(argument).collect()
}

/// Whether a value that comes twice changes nothing, so that DISTINCT means nothing.
fn is_idempotent(function: &AggregateUDF) -> bool {
    let own = function.inner();
    own.is::<Max>()
        || own.is::<Min>()
        || own.is::<BoolAnd>()
        || own.is::<BoolOr>()
        || own.is::<ApproxDistinct>()
        || *function == *bit_and_udaf()
        || *function == *bit_or_udaf()
}

/// Whether DataFusion's function answers DISTINCT rightly, for values of these types.
fn knows_distinct(function: &AggregateFunctionExpr, arguments: &[Argument]) -> bool {
    let own = function.fun().inner();
    let knows = own.is::<Count>()
        || own.is::<Sum>()
        || own.is::<Avg>()
        || own.is::<ArrayAgg>()
        || own.is::<StringAgg>()
        || own.is::<Median>()
        || own.is::<PercentileCont>();
    // Equal values of these types have equal bytes, and none holds on to more than itself.
    let is_exact = |of_type: &DataType| {
        !of_type.is_floating() && !of_type.is_nested() && !matches!(of_type, DataType::Dictionary(_, _))
    };
    let exact = arguments.iter().all(|argument| match argument {
        Argument::Constant(_) => true,
        Argument::Column(of_type) => is_exact(of_type),
    });
    knows && exact && function.create_accumulator().is_ok()
}

/// A function under its own name, with our code.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Instead {
    function: AggregateUDF,
    how: How,
}

impl AggregateUDFImpl for Instead {
    fn name(&self) -> &str {
        self.function.name()
    }

    fn aliases(&self) -> &[String] {
        self.function.aliases()
    }

    fn signature(&self) -> &Signature {
        self.function.signature()
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        self.function.return_type(arg_types)
    }

    fn return_field(&self, arg_fields: &[FieldRef]) -> Result<FieldRef> {
        self.function.return_field(arg_fields)
    }

    fn is_nullable(&self) -> bool {
        self.function.is_nullable()
    }

    fn coerce_types(&self, arg_types: &[DataType]) -> Result<Vec<DataType>> {
        self.function.coerce_types(arg_types)
    }

    fn default_value(&self, data_type: &DataType) -> Result<ScalarValue> {
        self.function.default_value(data_type)
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        match &self.how {
            How::GroupByGroup => self.function.accumulator(args),
            How::Greatest | How::Least => {
                let of_type = args.return_field.data_type();
                Ok(Box::new(OneGroup::new(Extreme::try_new(of_type, self.how == How::Greatest)?, of_type)))
            }
            How::Distinct(arguments) => {
                let place = |by: &PhysicalSortExpr| {
                    let place = args.exprs.iter().position(|argument| argument == &by.expr);
                    place.map(|place| (place, by.options))
                };
                let order: Option<Vec<_>> = args.order_bys.iter().map(place).collect();
                let Some(order) = order else {
                    return not_impl_err!(
                        "`{}(DISTINCT …)` on a stream is ordered by its own arguments only",
                        self.name()
                    );
                };
                let takes_order = !self.function.order_sensitivity().is_insensitive();
                let plain = self.function.accumulator(AccumulatorArgs { is_distinct: false, ..args })?;
                Ok(Box::new(DistinctAccumulator::try_new(plain, arguments.clone(), order, takes_order)?))
            }
        }
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let (name, of_type) = match &self.how {
            How::GroupByGroup => return self.function.state_fields(args),
            How::Greatest | How::Least => ("value", args.return_field.data_type().clone()),
            How::Distinct(arguments) => ("distinct", distinct::state_type(arguments)),
        };
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, name), of_type, true))])
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        matches!(self.how, How::Greatest | How::Least)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::new(Extreme::try_new(args.return_field.data_type(), self.how == How::Greatest)?))
    }

    fn with_beneficial_ordering(self: Arc<Self>, given: bool) -> Result<Option<Arc<dyn AggregateUDFImpl>>> {
        if self.how != How::GroupByGroup {
            return Ok(None);
        }
        let updated = self.function.clone().with_beneficial_ordering(given)?;
        Ok(updated.map(|function| Arc::new(Instead { function, how: How::GroupByGroup }) as _))
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        match self.how {
            How::GroupByGroup => self.function.order_sensitivity(),
            How::Distinct(_) | How::Greatest | How::Least => AggregateOrderSensitivity::Insensitive,
        }
    }
}
