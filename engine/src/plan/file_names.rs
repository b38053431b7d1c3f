//! `input_file_name()`: the file a row was read from.
//!
//! DataFusion's own scans of files answer the function; one that is still there when rows flow can only fail. A source that
//! knows its files offers their names as a column behind its schema ([`Source::knows_file_names`]), and here the function
//! becomes that column, carried up from the scan to where it is asked for. What no source can answer is refused.
//!
//! [`Source::knows_file_names`]: crate::source::Source::knows_file_names

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::datasource::provider_as_source;
use datafusion::error::Result;
use datafusion::functions::core::file_row_index::FileRowIndexFunc;
use datafusion::functions::core::input_file_name::InputFileNameFunc;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection, SubqueryAlias, TableScan, TableScanBuilder, Union};

use super::check::{is_streaming, stream_of};
use super::node::watermark::WatermarkNode;
use crate::error::{Error, ErrorKind};
use crate::source::{FILE_NAME_COLUMN, StreamTable};

/// Turns every `input_file_name()` over a stream into a column of that stream.
pub(super) fn bind_file_names(plan: LogicalPlan) -> Result<LogicalPlan> {
    let bind = |plan: LogicalPlan| {
        let asked = asked_by(&plan)?;
        // A table's own scan answers, or says why it cannot.
        if asked == Asked::Nothing || !plan.inputs().into_iter().any(is_streaming) {
            return Ok(Transformed::no(plan));
        }
        if asked == Asked::RowIndex {
            return Err(refused("file_row_index()", "a stream does not number the rows of its files").into());
        }
        bind_in(plan).map(Transformed::yes)
    };
    plan.transform_up_with_subqueries(bind).data()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    Name,
    RowIndex,
}

fn asked_by(plan: &LogicalPlan) -> Result<Asked> {
    let mut asked = Asked::Nothing;
    plan.apply_expressions(|expr| {
        expr.apply(|expr| {
            if is_file_name(expr) && asked == Asked::Nothing {
                asked = Asked::Name;
            } else if matches!(expr, Expr::ScalarFunction(f) if f.func.inner().is::<FileRowIndexFunc>()) {
                asked = Asked::RowIndex;
            }
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(asked)
}

fn is_file_name(expr: &Expr) -> bool {
    matches!(expr, Expr::ScalarFunction(f) if f.func.inner().is::<InputFileNameFunc>())
}

fn refused(function: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("`{function}`: {why}"))
}

/// The same node, with the column in the place of the function.
fn bind_in(plan: LogicalPlan) -> Result<LogicalPlan> {
    let inputs = plan.inputs();
    let carried = match (&plan, &inputs[..]) {
        (LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::Aggregate(_), [input]) => carry(input)?,
        _ => None,
    };
    let Some((input, column)) = carried else {
        let why = "here it is not known any more from which file a row came, or the stream does not read files";
        let error = refused("input_file_name()", why);
        return Err(error
            .with_hint(
                "ask for it in a SELECT, WHERE or GROUP BY right over a stream of files, before joins and aggregations, \
                 and give the column a name to use further up",
            )
            .into());
    };
    let names = NamePreserver::new(&plan);
    let exprs = plan.expressions().into_iter().map(|expr| {
        let name = names.save(&expr);
        let replaced = expr.transform_up(|expr| match is_file_name(&expr) {
            true => Ok(Transformed::yes(Expr::Column(column.clone()))),
            false => Ok(Transformed::no(expr)),
        });
        Ok(name.restore(replaced.data()?))
    });
    let bound = plan.with_new_exprs(exprs.collect::<Result<Vec<_>>>()?, vec![input])?;
    match &plan {
        // It passes on what it gets; nobody above is to see more columns than before.
        LogicalPlan::Filter(_) => {
            let columns = plan.schema().columns().into_iter().map(Expr::Column).collect();
            Ok(LogicalPlan::Projection(Projection::try_new(columns, Arc::new(bound))?))
        }
        _ => Ok(bound),
    }
}

/// `plan` with the name of the file as its last column, if every row still is a row of a file.
fn carry(plan: &LogicalPlan) -> Result<Option<(LogicalPlan, Column)>> {
    // A node further down that asked for it has brought it here.
    if let Some(column) = plan.schema().columns().into_iter().find(|column| column.name == FILE_NAME_COLUMN) {
        return Ok(Some((plan.clone(), column)));
    }
    let carried = match plan {
        LogicalPlan::TableScan(scan) => scan_with_names(scan)?,
        LogicalPlan::Projection(projection) => match carry(&projection.input)? {
            Some((input, column)) => {
                let exprs = projection.expr.iter().cloned().chain([Expr::Column(column)]).collect();
                Some(LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input))?))
            }
            None => None,
        },
        LogicalPlan::SubqueryAlias(alias) => match carry(&alias.input)? {
            Some((input, _)) => {
                let alias = SubqueryAlias::try_new(Arc::new(input), alias.alias.clone())?;
                Some(LogicalPlan::SubqueryAlias(alias))
            }
            None => None,
        },
        LogicalPlan::Filter(_) | LogicalPlan::Limit(_) | LogicalPlan::Sort(_) => carry_through(plan)?,
        LogicalPlan::Extension(extension) if extension.node.as_any().is::<WatermarkNode>() => carry_through(plan)?,
        LogicalPlan::Union(union) => {
            let inputs: Option<Vec<_>> =
                union.inputs.iter().map(|input| carry(input)).collect::<Result<Option<Vec<_>>>>()?;
            match inputs {
                Some(inputs) => {
                    let inputs = inputs.into_iter().map(|(input, _)| Arc::new(input)).collect();
                    Some(LogicalPlan::Union(Union::try_new(inputs)?))
                }
                None => None,
            }
        }
        _ => None,
    };
    Ok(carried.and_then(|plan| {
        let column = plan.schema().columns().pop()?;
        Some((plan, column))
    }))
}

/// A node of one input that passes all columns on.
fn carry_through(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let [input] = plan.inputs()[..] else { return Ok(None) };
    let Some((input, _)) = carry(input)? else { return Ok(None) };
    plan.with_new_exprs(plan.expressions(), vec![input]).map(Some)
}

fn scan_with_names(scan: &TableScan) -> Result<Option<LogicalPlan>> {
    let Some(source) = stream_of(scan).filter(|source| source.knows_file_names()) else { return Ok(None) };
    let names = source.schema().fields().len();
    let projection: Vec<usize> = match &scan.projection {
        Some(projection) => projection.iter().copied().chain([names]).collect(),
        None => (0..=names).collect(),
    };
    let table = provider_as_source(Arc::new(StreamTable::with_file_names(source)));
    let scan = TableScanBuilder::new(scan.table_name.clone(), table)
        .with_projection(Some(projection))
        .with_filters(scan.filters.clone())
        .with_fetch(scan.fetch)
        .build()?;
    Ok(Some(LogicalPlan::TableScan(scan)))
}
