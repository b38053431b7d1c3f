//! What DataFusion asks of every node of a physical plan, and ours answer alike.

use std::sync::Arc;

use datafusion::error::{DataFusionError, Result};
use datafusion::physical_plan::ExecutionPlan;

/// The methods of an [`ExecutionPlan`] with one `input`, whose partitions are its own. The node has a method `with_input`.
macro_rules! one_input {
    ($node:ident) => {
        fn name(&self) -> &'static str {
            stringify!($node)
        }

        fn children(&self) -> Vec<&std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
            vec![&self.input]
        }

        // Where rows are spread, an exchange says so.
        fn benefits_from_input_partitioning(&self) -> Vec<bool> {
            vec![false]
        }

        fn replace_children(
            self: std::sync::Arc<Self>,
            children: Vec<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>>,
            _options: datafusion::physical_plan::execution_plan::ReplaceChildrenOptions,
        ) -> datafusion::error::Result<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
            Ok(std::sync::Arc::new(self.with_input($crate::plan_node::only_child(children)?)))
        }

        $crate::plan_node::new_children!();
    };
}

/// The methods of an [`ExecutionPlan`] without inputs.
macro_rules! no_inputs {
    ($node:ident) => {
        fn name(&self) -> &'static str {
            stringify!($node)
        }

        fn children(&self) -> Vec<&std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
            vec![]
        }

        fn replace_children(
            self: std::sync::Arc<Self>,
            _children: Vec<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>>,
            _options: datafusion::physical_plan::execution_plan::ReplaceChildrenOptions,
        ) -> datafusion::error::Result<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
            Ok(self)
        }

        $crate::plan_node::new_children!();
    };
}

/// `with_new_children`, by `replace_children`.
macro_rules! new_children {
    () => {
        fn with_new_children(
            self: std::sync::Arc<Self>,
            children: Vec<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>>,
        ) -> datafusion::error::Result<std::sync::Arc<dyn datafusion::physical_plan::ExecutionPlan>> {
            use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
            self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
        }
    };
}

/// `apply_expressions` of a node without any that DataFusion could work on.
macro_rules! no_expressions {
    () => {
        fn apply_expressions(
            &self,
            _f: &mut dyn FnMut(
                &std::sync::Arc<dyn datafusion::physical_expr::PhysicalExpr>,
            ) -> datafusion::error::Result<datafusion::common::tree_node::TreeNodeRecursion>,
        ) -> datafusion::error::Result<datafusion::common::tree_node::TreeNodeRecursion> {
            Ok(datafusion::common::tree_node::TreeNodeRecursion::Continue)
        }
    };
}

pub(crate) use {new_children, no_expressions, no_inputs, one_input};

/// The one child of a node that has one.
pub(crate) fn only_child(children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
    let number = children.len();
    let [child] = <[Arc<dyn ExecutionPlan>; 1]>::try_from(children)
        .map_err(|_| DataFusionError::Internal(format!("an operator of one input was given {number}")))?;
    Ok(child)
}
