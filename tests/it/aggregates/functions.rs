//! Aggregate functions as users write them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type};
use datafusion::error::Result;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, EmitTo, GroupsAccumulator, Signature, Volatility, create_udaf,
};
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;

pub(super) fn register(ctx: &SessionContext) {
    ctx.register_udaf(AggregateUDF::from(Mean {
        signature: Signature::exact(vec![DataType::Int64], Volatility::Immutable),
    }));
    ctx.register_udaf(create_udaf(
        "sum_ignoring_distinct",
        vec![DataType::Int64],
        Arc::new(DataType::Int64),
        Volatility::Immutable,
        Arc::new(|_| Ok(Box::<Sum>::default())),
        Arc::new(vec![DataType::Int64]),
    ));
}

/// A sum that knows nothing of DISTINCT.
#[derive(Debug, Default)]
struct Sum(Option<i64>);

impl Accumulator for Sum {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        for value in values[0].as_primitive::<Int64Type>().iter().flatten() {
            *self.0.get_or_insert(0) += value;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Int64(self.0))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }
}

/// A mean whose state is, of one group, mean and count; of many at once, sum and count.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Mean {
    signature: Signature,
}

impl AggregateUDFImpl for Mean {
    fn name(&self) -> &str {
        "mean_in_two_forms"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arg_types: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        Ok(Box::new(MeanOfOne { mean: 0.0, count: 0 }))
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let field = |name: &str, of_type| Arc::new(Field::new(format!("{}[{name}]", args.name), of_type, true));
        Ok(vec![field("number", DataType::Float64), field("count", DataType::Int64)])
    }

    fn groups_accumulator_supported(&self, _args: AccumulatorArgs) -> bool {
        true
    }

    fn create_groups_accumulator(&self, _args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        Ok(Box::<MeanOfMany>::default())
    }
}

#[derive(Debug)]
struct MeanOfOne {
    mean: f64,
    count: i64,
}

impl MeanOfOne {
    fn add(&mut self, mean: f64, count: i64) {
        let all = self.count + count;
        if all > 0 {
            self.mean = (self.mean * self.count as f64 + mean * count as f64) / all as f64;
            self.count = all;
        }
    }
}

impl Accumulator for MeanOfOne {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        values[0].as_primitive::<Int64Type>().iter().flatten().for_each(|value| self.add(value as f64, 1));
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        Ok(ScalarValue::Float64((self.count > 0).then(|| (self.mean * 1e6).round() / 1e6)))
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::from(self.mean), ScalarValue::from(self.count)])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (means, counts) = (states[0].as_primitive::<Float64Type>(), states[1].as_primitive::<Int64Type>());
        (0..means.len()).for_each(|row| self.add(means.value(row), counts.value(row)));
        Ok(())
    }
}

#[derive(Debug, Default)]
struct MeanOfMany {
    sums: Vec<f64>,
    counts: Vec<i64>,
}

impl MeanOfMany {
    fn add(&mut self, group: usize, total: usize, sum: f64, count: i64) {
        self.sums.resize(total.max(self.sums.len()), 0.0);
        self.counts.resize(total.max(self.counts.len()), 0);
        self.sums[group] += sum;
        self.counts[group] += count;
    }
}

impl GroupsAccumulator for MeanOfMany {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        wanted: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        let values = values[0].as_primitive::<Int64Type>();
        for (row, &group) in groups.iter().enumerate() {
            let counts = values.is_valid(row) && wanted.is_none_or(|wanted| wanted.is_valid(row) && wanted.value(row));
            self.add(group, total, if counts { values.value(row) as f64 } else { 0.0 }, i64::from(counts));
        }
        Ok(())
    }

    fn evaluate(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let (sums, counts) = (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.counts));
        let mean = |(sum, count): (f64, i64)| (count > 0).then(|| (sum / count as f64 * 1e6).round() / 1e6);
        Ok(Arc::new(sums.into_iter().zip(counts).map(mean).collect::<Float64Array>()))
    }

    fn state(&mut self, emit: EmitTo) -> Result<Vec<ArrayRef>> {
        let (sums, counts) = (emit.take_needed(&mut self.sums), emit.take_needed(&mut self.counts));
        Ok(vec![Arc::new(Float64Array::from(sums)), Arc::new(Int64Array::from(counts))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        let (sums, counts) = (states[0].as_primitive::<Float64Type>(), states[1].as_primitive::<Int64Type>());
        for (row, &group) in groups.iter().enumerate() {
            self.add(group, total, sums.value(row), counts.value(row));
        }
        Ok(())
    }

    fn convert_to_state(&self, values: &[ArrayRef], wanted: Option<&BooleanArray>) -> Result<Vec<ArrayRef>> {
        let mut each = MeanOfMany::default();
        each.update_batch(values, &(0..values[0].len()).collect::<Vec<_>>(), wanted, values[0].len())?;
        each.state(EmitTo::All)
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<f64>() + self.counts.capacity() * size_of::<i64>()
    }
}
