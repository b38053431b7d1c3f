//! The smallest query: a source that ticks, a filter, a table on the screen. Ends after four seconds.
//!
//! `cargo run --release --example rate_to_console`

use datafusion::prelude::*;
use tidewater::prelude::*;
use tidewater_connectors::console::ConsoleSink;
use tidewater_connectors::rate::RateSource;

#[tokio::main]
async fn main() -> Result<()> {
    let ctx = SessionContext::new();

    // Five rows a second, each with a `timestamp` and a `value` that counts up.
    let ticks = ctx.read_stream(RateSource::new(5))?;

    // From here on it is an ordinary DataFrame: every function of DataFusion works on it.
    let even = ticks.filter((col("value") % lit(2)).eq(lit(0)))?.select(vec![
        col("timestamp"),
        col("value"),
        (col("value") * col("value")).alias("squared"),
    ])?;

    // A batch every second. Without a checkpoint directory the query keeps its logs in a temporary one, so the next run
    // begins anew; give it `.checkpoint("dir")` and the next run goes on where this one stopped.
    let query = even.write_stream(ConsoleSink::new()).trigger(Trigger::processing_time("1 second")).start().await?;

    // `stop` lets the running batch finish; this is what Ctrl-C should do in a program of yours.
    query.await_termination_for("4 seconds").await?;
    query.stop().await
}
