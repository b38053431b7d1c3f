//! `window.start` in SQL, where the query groups by `window(…)`.
//!
//! Spark names the result of `GROUP BY window(ts, '10 minutes')` by its function, so that `window`, `window.start` and
//! `window.end` stand for it in SELECT, HAVING and ORDER BY. To DataFusion these are columns of nothing. So they are
//! replaced by the call, before the statement is planned. A statement that means something as it stands is left alone.

use std::ops::ControlFlow;

use datafusion::error::Result;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    AccessExpr, Expr, GroupByExpr, Ident, OrderBy, Query, Select, SelectItem, SetExpr, Subscript, Value, VisitMut,
    VisitorMut, visit_expressions, visit_expressions_mut,
};

/// The plan of a statement.
pub(crate) async fn plan_statement(state: &SessionState, statement: Statement) -> Result<LogicalPlan> {
    let mut named = statement.clone();
    let as_it_stands = state.statement_to_plan(statement).await;
    if as_it_stands.is_err() && name_windows(&mut named) {
        return state.statement_to_plan(named).await;
    }
    as_it_stands
}

/// Puts calls in the place of their names. Returns whether there were any.
fn name_windows(statement: &mut Statement) -> bool {
    let Statement::Statement(statement) = statement else { return false };
    let mut names = Names { replaced: false };
    let _ = statement.visit(&mut names);
    names.replaced
}

struct Names {
    replaced: bool,
}

impl VisitorMut for Names {
    type Break = ();

    /// Inner queries come first, each with its own GROUP BY.
    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        self.replaced |= in_body(&mut query.body, query.order_by.as_mut());
        ControlFlow::Continue(())
    }
}

fn in_body(body: &mut SetExpr, order_by: Option<&mut OrderBy>) -> bool {
    match body {
        SetExpr::Select(select) => in_select(select, order_by),
        SetExpr::SetOperation { left, right, .. } => in_body(left, None) | in_body(right, None),
        _ => false,
    }
}

fn in_select(select: &mut Select, order_by: Option<&mut OrderBy>) -> bool {
    let GroupByExpr::Expressions(keys, _) = &select.group_by else { return false };
    let mut calls: Vec<Call> = keys.iter().filter_map(Call::of).collect();
    let mut replaced = false;
    for item in &mut select.projection {
        if let SelectItem::UnnamedExpr(expr) = item
            && let Some((expr, alias)) = named(expr, &calls)
        {
            *item = SelectItem::ExprWithAlias { expr, alias };
            replaced = true;
        }
    }
    // Deeper in, an argument of the call could be taken for the call itself.
    calls.retain(|call| !call.takes_namesake);
    let mut replace = |expr: &mut Expr| {
        if let Some((call, _)) = named(expr, &calls) {
            *expr = call;
            replaced = true;
        }
        ControlFlow::<()>::Continue(())
    };
    let _ = visit_expressions_mut(&mut select.projection, &mut replace);
    let _ = visit_expressions_mut(&mut select.having, &mut replace);
    if let Some(order_by) = order_by {
        let _ = visit_expressions_mut(order_by, &mut replace);
    }
    replaced
}

/// A window in GROUP BY.
struct Call {
    name: &'static str,
    expr: Expr,
    /// It is a window of a column that has the function's name.
    takes_namesake: bool,
}

impl Call {
    fn of(key: &Expr) -> Option<Self> {
        let Expr::Function(function) = key else { return None };
        let [function] = function.name.0.as_slice() else { return None };
        let name = ["window", "session_window"].into_iter().find(|name| is(function.as_ident(), name))?;
        let found = visit_expressions(key, |part| match first_name(part) {
            Some(first) if is(Some(first), name) => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        });
        Some(Call { name, expr: key.clone(), takes_namesake: found.is_break() })
    }
}

/// What a name stands for, and how a column of it is called.
fn named(expr: &Expr, calls: &[Call]) -> Option<(Expr, Ident)> {
    let first = first_name(expr)?;
    let call = calls.iter().find(|call| is(Some(first), call.name))?;
    match expr {
        Expr::CompoundIdentifier(names) => {
            let [_, field] = names.as_slice() else { return None };
            let bound = ["start", "end"].into_iter().find(|bound| is(Some(field), bound))?;
            let index = Expr::value(Value::SingleQuotedString(bound.to_owned()).with_empty_span());
            let access_chain = vec![AccessExpr::Subscript(Subscript::Index { index })];
            let value = Expr::CompoundFieldAccess { root: Box::new(call.expr.clone()), access_chain };
            Some((value, Ident::with_quote('"', bound)))
        }
        _ => Some((call.expr.clone(), Ident::new(call.name))),
    }
}

fn first_name(expr: &Expr) -> Option<&Ident> {
    match expr {
        Expr::Identifier(name) => Some(name),
        Expr::CompoundIdentifier(names) => names.first(),
        _ => None,
    }
}

fn is(ident: Option<&Ident>, name: &str) -> bool {
    ident.is_some_and(|ident| match ident.quote_style {
        None => ident.value.eq_ignore_ascii_case(name),
        Some(_) => ident.value == name,
    })
}

#[cfg(test)]
mod tests {
    use datafusion::sql::parser::DFParser;

    use super::*;

    fn rewritten(sql: &str) -> Option<String> {
        let mut statement = DFParser::parse_sql(sql).unwrap().pop_front().unwrap();
        name_windows(&mut statement).then(|| statement.to_string())
    }

    #[test]
    fn names_become_calls() {
        assert_eq!(
            rewritten(
                "SELECT window, window.start, window.\"end\" AS till, k FROM t \
                 GROUP BY window(ts, '1 hour'), k HAVING window.start > x ORDER BY window.start"
            )
            .unwrap(),
            "SELECT window(ts, '1 hour') AS window, window(ts, '1 hour')['start'] AS \"start\", \
             window(ts, '1 hour')['end'] AS till, k FROM t \
             GROUP BY window(ts, '1 hour'), k HAVING window(ts, '1 hour')['start'] > x \
             ORDER BY window(ts, '1 hour')['start']"
        );
        assert_eq!(
            rewritten("SELECT Session_Window.start FROM t GROUP BY session_window(ts, gap), k").unwrap(),
            "SELECT session_window(ts, gap)['start'] AS \"start\" FROM t GROUP BY session_window(ts, gap), k"
        );
    }

    #[test]
    fn each_query_has_its_own_windows() {
        assert_eq!(
            rewritten(
                "SELECT window.start, sum(n) FROM (SELECT window, count(*) AS n FROM t GROUP BY window(ts, '1 hour')) \
                 GROUP BY window(window, '1 day')"
            )
            .unwrap(),
            "SELECT window(window, '1 day')['start'] AS \"start\", sum(n) \
             FROM (SELECT window(ts, '1 hour') AS window, count(*) AS n FROM t GROUP BY window(ts, '1 hour')) \
             GROUP BY window(window, '1 day')"
        );
    }

    #[test]
    fn other_names_stay() {
        for sql in [
            "SELECT window.start FROM (SELECT window(ts, '1 hour') AS window FROM t)",
            "SELECT window.size FROM t GROUP BY window(ts, '1 hour'), window.size",
            "SELECT k, count(*) FROM t GROUP BY k",
        ] {
            assert_eq!(rewritten(sql), None, "{sql}");
        }
    }
}
