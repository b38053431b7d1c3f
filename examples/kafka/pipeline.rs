//! What happens to orders, whether they stream or not.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::functions_aggregate::expr_fn::{count, sum};
use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::formats::to_json;

/// An order of so much is large.
const LARGE: f64 = 90.0;

/// How long a window of revenue is.
const WINDOW: &str = "5 seconds";

/// How late an order may come.
const DELAY: &str = "2 seconds";

/// So many customers are made up.
const CUSTOMERS: i64 = 50;

/// One record of so many is not JSON: something always is.
const BROKEN: i64 = 500;

/// The columns of an order, and of a customer's revenue in one window.
const ORDER: [&str; 4] = ["id", "customer", "amount", "ordered_at"];
const REVENUE: [&str; 4] = ["from", "customer", "orders", "revenue"];

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

/// The fields of an order, as they are in its JSON.
pub(crate) fn order_fields() -> Fields {
    Fields::from(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("customer", DataType::Utf8, true),
        Field::new("amount", DataType::Float64, true),
        Field::new("ordered_at", time(), true),
    ])
}

/// The fields of a customer's revenue in one window.
pub(crate) fn revenue_fields() -> Fields {
    Fields::from(vec![
        Field::new("from", time(), true),
        Field::new("customer", DataType::Utf8, true),
        Field::new("orders", DataType::Int64, true),
        Field::new("revenue", DataType::Float64, true),
    ])
}

/// Orders out of nothing: `timestamp` and `value` of a rate become a key and a JSON value.
pub(crate) fn made_up(rate: DataFrame) -> Result<DataFrame> {
    let customer = concat(vec![lit("customer-"), cast(col("value") % lit(CUSTOMERS), DataType::Utf8)]);
    let order = rate.select(vec![
        col("value").alias("id"),
        customer.alias("customer"),
        (cast(col("value") * lit(37_i64) % lit(1000_i64), DataType::Float64) / lit(10.0)).alias("amount"),
        col("timestamp").alias("ordered_at"),
    ])?;
    let is_broken = (col("id") % lit(BROKEN)).eq(lit(BROKEN - 1));
    let value = when(is_broken, lit("not an order")).otherwise(json(&ORDER))?;
    Ok(order.select(vec![col("customer").alias("key"), value.alias("value")])?)
}

/// These columns as one JSON object.
fn json(columns: &[&str]) -> Expr {
    to_json(named_struct(columns.iter().flat_map(|name| [lit(*name), col(*name)]).collect()))
}

/// The fields of the struct `value` as columns.
pub(crate) fn fields_of_value(records: DataFrame, fields: &Fields) -> Result<DataFrame> {
    let columns = fields.iter().map(|field| col("value").field(field.name().as_str()).alias(field.name()));
    Ok(records.select(columns.collect::<Vec<Expr>>())?)
}

/// The large orders, one by one: keeps nothing.
pub(crate) fn large(records: DataFrame) -> Result<DataFrame> {
    let orders = fields_of_value(records, &order_fields())?.filter(col("amount").gt_eq(lit(LARGE)))?;
    Ok(orders.select(vec![col("customer").alias("key"), json(&ORDER).alias("value")])?)
}

/// What each customer spent in each window, emitted once, when the window is over: keeps open windows.
pub(crate) fn revenue(records: DataFrame) -> Result<DataFrame> {
    let orders = fields_of_value(records, &order_fields())?.with_watermark("ordered_at", DELAY)?;
    let spent = orders.aggregate(
        vec![window(col("ordered_at"), WINDOW).alias("window"), col("customer")],
        vec![count(lit(1)).alias("orders"), sum(col("amount")).alias("revenue")],
    )?;
    let spent = spent.select(vec![
        col("window").field("start").alias("from"),
        col("customer"),
        col("orders"),
        col("revenue"),
    ])?;
    Ok(spent.select(vec![col("customer").alias("key"), json(&REVENUE).alias("value")])?)
}
