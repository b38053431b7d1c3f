//! The user's words for what an error mentions: which functions are theirs, and what DataFusion's made-up columns stand
//! for.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::SessionStateDefaults;
use datafusion::logical_expr::expr::WindowFunctionDefinition;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility};

use crate::error::{Error, ErrorKind};

/// How the names begin that DataFusion's rules give to parts of expressions.
const MADE_UP: [&str; 2] = ["__common_expr_", "__datafusion_extracted_"];

/// Functions of ours.
const OURS: [&str; 5] = ["window", "session_window", "window_time", "input_file_name", "file_row_index"];

/// The user's words for what errors of a query mention.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Functions that are neither DataFusion's nor ours.
    functions: Vec<String>,
    /// Those of them that may answer otherwise when they are asked again.
    volatile: Vec<String>,
    /// Made-up names and what they stand for, longer names first, so that no name is taken for the beginning of another.
    made_up: Vec<(String, String)>,
}

impl Names {
    /// Finds the user's own functions in their plan.
    pub(crate) fn of_functions(plan: &LogicalPlan) -> Result<Self> {
        let mut known: Vec<String> = OURS.map(str::to_owned).to_vec();
        known.extend(SessionStateDefaults::default_scalar_functions().iter().map(|f| f.name().to_owned()));
        known.extend(SessionStateDefaults::default_aggregate_functions().iter().map(|f| f.name().to_owned()));
        known.extend(SessionStateDefaults::default_window_functions().iter().map(|f| f.name().to_owned()));
        let (mut functions, mut volatile): (Vec<String>, Vec<String>) = (vec![], vec![]);
        plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                expr.apply(|expr| {
                    let (name, signature) = match expr {
                        Expr::ScalarFunction(function) => (function.name(), function.func.signature()),
                        Expr::AggregateFunction(function) => (function.func.name(), function.func.signature()),
                        Expr::WindowFunction(function) => match &function.fun {
                            WindowFunctionDefinition::AggregateUDF(function) => (function.name(), function.signature()),
                            WindowFunctionDefinition::WindowUDF(function) => (function.name(), function.signature()),
                        },
                        _ => return Ok(TreeNodeRecursion::Continue),
                    };
                    if !known.iter().chain(&functions).any(|known| known == name) {
                        functions.push(name.to_owned());
                        if signature.volatility == Volatility::Volatile {
                            volatile.push(name.to_owned());
                        }
                    }
                    Ok(TreeNodeRecursion::Continue)
                })
            })
        })?;
        Ok(Names { functions, volatile, made_up: vec![] })
    }

    /// The user's functions whose answers a batch that is repeated cannot have again: they draw by themselves.
    pub(crate) fn volatile(&self) -> &[String] {
        &self.volatile
    }

    /// Learns from an optimised plan what its made-up names stand for.
    pub(crate) fn learn(&mut self, plan: &LogicalPlan) -> Result<()> {
        let made_up = &mut self.made_up;
        plan.apply_with_subqueries(|node| {
            node.apply_expressions(|expr| {
                if let Expr::Alias(alias) = expr
                    && MADE_UP.iter().any(|beginning| alias.name.starts_with(beginning))
                {
                    made_up.push((alias.name.clone(), alias.expr.to_string()));
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        made_up.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Ok(())
    }

    /// The text with the user's expressions in the place of made-up names.
    pub(crate) fn reword(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // What one stands for may hold others, each made before it.
        for _ in 0..=self.made_up.len() {
            if !MADE_UP.iter().any(|beginning| text.contains(beginning)) {
                break;
            }
            for (name, meaning) in &self.made_up {
                text = text.replace(name, meaning);
            }
        }
        text
    }

    /// The error in the user's words, and with their functions where one of these may have made it.
    pub(crate) fn in_words(&self, error: Error) -> Error {
        let error = error.reworded(|text| self.reword(text));
        let Some(cause) = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<DataFusionError>())
        else {
            return error;
        };
        let root = cause.find_root();
        let is_free_text = matches!(root, DataFusionError::Execution(_) | DataFusionError::External(_));
        if self.functions.is_empty() || !is_free_text || error.file().is_some() || error.hint().is_some() {
            return error;
        }
        let functions: Vec<String> = self.functions.iter().map(|name| format!("`{name}`")).collect();
        let functions = functions.join(", ");
        match root {
            DataFusionError::External(_) => error.with_hint(format!("look at the functions of the query: {functions}")),
            _ => error.with_kind(ErrorKind::UserCode).with_hint(format!(
                "a function of the query most likely said that ({functions}), else one of DataFusion's, of a value it does not take"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes::DataType;
    use datafusion::logical_expr::{ColumnarValue, create_udf};
    use datafusion::prelude::SessionContext;

    use super::*;

    #[tokio::test]
    async fn functions_of_the_users_are_told_and_which_of_them_draw() {
        let ctx = SessionContext::new();
        for (name, volatility) in [("my_dice", Volatility::Volatile), ("twice", Volatility::Immutable)] {
            let function = Arc::new(|args: &[ColumnarValue]| Ok(args[0].clone()));
            ctx.register_udf(create_udf(name, vec![DataType::Int64], DataType::Int64, volatility, function));
        }
        let sql = "SELECT my_dice(1), twice(CAST(random() AS BIGINT)) FROM (VALUES (my_dice(2), upper('a'))) WHERE my_dice(3) > 1";
        let plan = ctx.sql(sql).await.unwrap().into_unoptimized_plan();
        let names = Names::of_functions(&plan).unwrap();
        assert_eq!((names.functions.len(), names.volatile()), (2, &["my_dice".to_owned()][..]));
    }
}
