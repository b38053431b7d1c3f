//! The session in which a stream is planned: the user's, without what gives wrong answers.
//!
//! Two kinds of settings are changed. Some are needed because a plan is made once and run for every batch. Others
//! switch off what DataFusion is known to answer wrongly; each names its report, and `tests/it/planner_faults.rs` fails
//! once it is fixed upstream.

use std::sync::Arc;

use datafusion::config::ConfigOptions;
use datafusion::execution::{SessionState, SessionStateBuilder};

use super::drain_inputs::DrainInputsRule;
use super::planner::StreamPlanner;
use super::stateful::StatefulAggregateRule;
use super::static_inputs::CacheStaticInputsRule;
use crate::error::Result;
use crate::memory::with_limit;
use crate::output_mode::OutputMode;

/// Switches off, for streams and for batches alike, what the planner gets wrong without a word.
pub(crate) fn keep_answers_right(options: &mut ConfigOptions) {
    let optimizer = &mut options.optimizer;
    // It takes parts of windows out before their marks are seen. It drops computed columns whose name is that of the column they
    // are computed from, and calls functions twice: https://github.com/apache/datafusion/issues/25414,
    // https://github.com/apache/datafusion/issues/25329.
    optimizer.enable_leaf_expression_pushdown = false;
    // It takes branches of a UNION for one another that differ in computed columns:
    // https://github.com/apache/datafusion/issues/25071.
    optimizer.enable_unions_to_filter = false;
    // A rule that fails must be heard of: type coercion is one.
    optimizer.skip_failed_rules = false;
}

/// Logical rules that a stream does without.
const LEFT_OUT: [&str; 1] = [
    // It splits count(distinct) into two aggregates; the outer one would count each value again whenever it is touched.
    "single_distinct_aggregation_to_group_by",
];

/// The user's session with the settings that a cached plan needs.
pub(super) fn session_for_streams(
    user: SessionState,
    mode: OutputMode,
    partitions: usize,
    streaming_subqueries: bool,
) -> Result<SessionState> {
    let mut config = user
        .config()
        .clone()
        // The catalog is shared with the user's session: a default one would take the place of their tables.
        .with_create_default_catalog_and_schema(false)
        .with_target_partitions(partitions)
        .with_round_robin_repartition(false)
        // Through the string-keyed setter: it also switches off the filters of joins and sorts, which would outlive a batch.
        .set_bool("datafusion.optimizer.enable_dynamic_filter_pushdown", false)
        // A row whose key is null joins nothing. Said before optimising, it is filtered out below the watermark, as in Spark.
        .set_bool("datafusion.optimizer.filter_null_join_keys", true)
        // The static side of a join is always built whole, so that it can be kept.
        .set_usize("datafusion.optimizer.hash_join_single_partition_threshold", usize::MAX)
        .set_usize("datafusion.optimizer.hash_join_single_partition_threshold_rows", usize::MAX);
    keep_answers_right(config.options_mut());
    if streaming_subqueries {
        // What a subquery reads of a stream must go through the plan, as a join, to be counted and remembered.
        config = config.set_bool("datafusion.optimizer.enable_physical_uncorrelated_scalar_subquery", false);
    }
    let logical_rules = user.optimizers().iter().filter(|rule| !LEFT_OUT.contains(&rule.name())).cloned().collect();
    let mut physical_rules: Vec<_> = vec![
        Arc::new(CacheStaticInputsRule) as _,
        Arc::new(StatefulAggregateRule { mode, partitions }) as _,
        Arc::new(DrainInputsRule) as _,
    ];
    physical_rules.extend(user.physical_optimizers().iter().cloned());
    let runtime = with_limit(user.runtime_env())?;
    Ok(SessionStateBuilder::new_from_existing(user)
        .with_config(config)
        .with_runtime_env(runtime)
        .with_optimizer_rules(logical_rules)
        .with_query_planner(Arc::new(StreamPlanner { mode, partitions }))
        .with_physical_optimizer_rules(physical_rules)
        .build())
}
