//! The job itself, in one function that has two lives: given a table it is a batch job, given a stream it is a stream.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::prelude::*;
use tidewater::error::Result;

/// The columns of the daily files. A flight that was cancelled has no delays and no time in the air.
pub(crate) fn flights_schema() -> SchemaRef {
    let column = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        column("time_hour", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        column("carrier", DataType::Utf8),
        column("flight", DataType::Int32),
        column("tailnum", DataType::Utf8),
        column("origin", DataType::Utf8),
        column("dest", DataType::Utf8),
        column("dep_delay", DataType::Int32),
        column("arr_delay", DataType::Int32),
        column("air_time", DataType::Int32),
        column("distance", DataType::Int32),
    ]))
}

/// The columns of the table of airlines.
pub(crate) fn airlines_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("carrier", DataType::Utf8, true), Field::new("name", DataType::Utf8, true)]))
}

/// The flights that left, with the name of the airline and how bad the delay was. A flight whose airline is not in the
/// table keeps its row, without a name.
pub(crate) fn pipeline(flights: DataFrame, airlines: DataFrame) -> Result<DataFrame> {
    let airlines = airlines.select(vec![col("carrier").alias("code"), col("name").alias("airline")])?;
    let delays = flights
        .filter(col("dep_delay").is_not_null())?
        .join(airlines, JoinType::Left, &["carrier"], &["code"], None)?
        .select(vec![
            col("time_hour"),
            col("carrier"),
            col("airline"),
            col("flight"),
            col("tailnum"),
            col("origin"),
            col("dest"),
            col("dep_delay"),
            col("arr_delay"),
            col("distance"),
            band(col("dep_delay"))?.alias("band"),
        ])?;
    Ok(delays)
}

/// How bad a delay of so many minutes is. Below a quarter of an hour counts as on time, as in the official statistics.
fn band(delay_minutes: Expr) -> Result<Expr> {
    let band = when(delay_minutes.clone().lt(lit(15)), lit("on time"))
        .when(delay_minutes.clone().lt(lit(60)), lit("slight"))
        .when(delay_minutes.lt(lit(180)), lit("moderate"))
        .otherwise(lit("severe"))?;
    Ok(band)
}
