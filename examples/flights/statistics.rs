//! What the flights add up to: two queries that remember rows of earlier batches. Like the main job they do not know
//! whether they stream.

use datafusion::functions::core::expr_ext::FieldAccessor;
use datafusion::functions_aggregate::expr_fn::{avg, count, max};
use datafusion::prelude::*;
use tidewater::prelude::*;

/// How late a row may come, in the time of the flights.
const DELAY: &str = "2 hours";

/// A delay of so many minutes counts as late, as in the official statistics.
const LATE_MINUTES: i32 = 15;

/// The routes with at least so many flights are compared.
const FLIGHTS_MIN: i64 = 20;

/// A route is among the worst if its flights leave so many minutes late on average.
const MEAN_DELAY_MIN: f64 = 35.0;

/// Flights and their delays by hour and airline. On a stream in append mode an hour is written once, when it is over
/// and no more of its flights are waited for.
pub(crate) fn hourly(flights: DataFrame) -> Result<DataFrame> {
    let left = flights.filter(col("dep_delay").is_not_null())?.with_watermark("time_hour", DELAY)?;
    let late = when(col("dep_delay").gt_eq(lit(LATE_MINUTES)), lit(1.0)).otherwise(lit(0.0))?;
    let hours = left.aggregate(
        vec![window(col("time_hour"), "1 hour").alias("hour"), col("carrier")],
        vec![
            count(lit(1)).alias("flights"),
            avg(col("dep_delay")).alias("mean_delay"),
            max(col("dep_delay")).alias("worst_delay"),
            avg(late).alias("share_late"),
        ],
    )?;
    Ok(hours.select(vec![
        col("hour").field("start").alias("hour_start"),
        col("hour").field("end").alias("hour_end"),
        col("carrier"),
        col("flights"),
        col("mean_delay"),
        col("worst_delay"),
        col("share_late"),
    ])?)
}

/// The routes on which flights leave latest, as far as is known. On a stream in update mode each batch prints those that
/// changed.
pub(crate) fn worst_routes(flights: DataFrame) -> Result<DataFrame> {
    let routes = flights.filter(col("dep_delay").is_not_null())?.aggregate(
        vec![col("origin"), col("dest")],
        vec![count(lit(1)).alias("flights"), avg(col("dep_delay")).alias("mean_delay")],
    )?;
    let worst = col("flights").gt_eq(lit(FLIGHTS_MIN)).and(col("mean_delay").gt_eq(lit(MEAN_DELAY_MIN)));
    Ok(routes.filter(worst)?.select(vec![
        col("origin"),
        col("dest"),
        col("flights"),
        round(vec![col("mean_delay"), lit(1)]).alias("mean_delay"),
    ])?)
}
