//! How aggregates and window functions are spelled.
//!
//! ```text
//! sum(distinct source0.v order by source0.id desc) filter (source0.v > 0:int64)
//! row_number() over (partition by table0.k order by table0.v rows from unbounded preceding to current row)
//! ```

use std::sync::Arc;

use arrow::compute::SortOptions;
use datafusion::logical_expr::{WindowFrame, WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::window::{
    PlainAggregateWindowExpr, SlidingAggregateWindowExpr, StandardWindowExpr, WindowExpr,
};
use datafusion::physical_plan::windows::WindowUDFExpr;

use super::words::{call, name, value};

/// How an expression over the function's input is spelled.
type Spell<'a> = dyn FnMut(&Arc<dyn PhysicalExpr>) -> String + 'a;

pub(super) fn aggregate_words(
    aggregate: &AggregateFunctionExpr,
    filter: Option<&Arc<dyn PhysicalExpr>>,
    spell: &mut Spell<'_>,
) -> String {
    let arguments: Vec<String> = aggregate.expressions().iter().map(&mut *spell).collect();
    let distinct = if aggregate.is_distinct() { "distinct " } else { "" };
    let mut described = format!("{}({distinct}{}", name(aggregate.fun().name()), arguments.join(", "));
    for (place, by) in aggregate.order_bys().iter().enumerate() {
        described.push_str(if place == 0 { " order by " } else { ", " });
        described.push_str(&ordered(&by.expr, by.options, spell));
    }
    described.push(')');
    described.push_str(if aggregate.ignore_nulls() { " ignore nulls" } else { "" });
    if let Some(filter) = filter {
        described.push_str(&format!(" filter {}", spell(filter)));
    }
    described
}

/// Nothing for a kind of window function that is not known here.
pub(super) fn window_words(window: &Arc<dyn WindowExpr>, spell: &mut Spell<'_>) -> Option<String> {
    let any = window.as_any();
    let aggregate = any.downcast_ref::<PlainAggregateWindowExpr>().map(PlainAggregateWindowExpr::get_aggregate_expr);
    let aggregate = aggregate.or_else(|| {
        any.downcast_ref::<SlidingAggregateWindowExpr>().map(SlidingAggregateWindowExpr::get_aggregate_expr)
    });
    let function = match aggregate {
        Some(aggregate) => aggregate_words(aggregate, None, spell),
        None => {
            let standard = any.downcast_ref::<StandardWindowExpr>()?.get_standard_func_expr();
            let function = standard.as_any().downcast_ref::<WindowUDFExpr>()?;
            let arguments: Vec<String> = function.args().iter().map(&mut *spell).collect();
            call(&name(function.fun().name()), &arguments)
        }
    };
    let mut over = vec![];
    let partitions: Vec<String> = window.partition_by().iter().map(&mut *spell).collect();
    if !partitions.is_empty() {
        over.push(format!("partition by {}", partitions.join(", ")));
    }
    let orders: Vec<String> = window.order_by().iter().map(|by| ordered(&by.expr, by.options, spell)).collect();
    if !orders.is_empty() {
        over.push(format!("order by {}", orders.join(", ")));
    }
    over.push(frame_words(window.get_window_frame()));
    Some(format!("{function} over ({})", over.join(" ")))
}

fn ordered(expr: &Arc<dyn PhysicalExpr>, options: SortOptions, spell: &mut Spell<'_>) -> String {
    let descending = if options.descending { " desc" } else { "" };
    let nulls_first = if options.nulls_first { " nulls first" } else { "" };
    format!("{}{descending}{nulls_first}", spell(expr))
}

fn frame_words(frame: &WindowFrame) -> String {
    let units = match frame.units {
        WindowFrameUnits::Rows => "rows",
        WindowFrameUnits::Range => "range",
        WindowFrameUnits::Groups => "groups",
    };
    let bound = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::Preceding(by) if by.is_null() => "unbounded preceding".to_owned(),
        WindowFrameBound::Preceding(by) => format!("{} preceding", value(by)),
        WindowFrameBound::CurrentRow => "current row".to_owned(),
        WindowFrameBound::Following(by) if by.is_null() => "unbounded following".to_owned(),
        WindowFrameBound::Following(by) => format!("{} following", value(by)),
    };
    format!("{units} from {} to {}", bound(&frame.start_bound), bound(&frame.end_bound))
}
