//! Which predicates may skip stretches of a Parquet file without losing a row.
//!
//! A predicate is but a help: the plan applies it again. It is used where the statistics of the file say for certain what
//! is not there, and left out where anything might be otherwise:
//!
//! - Only comparisons of a column with values, and `AND`, `OR`, `NOT` of them. Casts and functions need not keep the order.
//! - Only columns that the file has with the very type of the source. A filter over the hash of another type never matches.
//! - No floating-point numbers: NaN is in no statistics, though it is larger than any bound
//!   (<https://github.com/apache/datafusion/issues/15812>), and `-0.0` and `0.0` may stand for each other.
//! - Only statistics of a known order with a count of nulls. Those in the fields of old (`min`, `max`) compare text as signed
//!   bytes (<https://issues.apache.org/jira/browse/PARQUET-251>), and a count that is missing is taken for none.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, Literal, NotExpr,
};
use datafusion::physical_expr::utils::collect_columns;
use parquet::basic::{ColumnOrder, SortOrder};
use parquet::file::metadata::ParquetMetaData;

/// The conjuncts of a predicate that only compare columns with values.
pub(super) fn plain(predicate: Option<&Arc<dyn PhysicalExpr>>) -> Vec<Arc<dyn PhysicalExpr>> {
    let conjuncts = predicate.into_iter().flat_map(datafusion::physical_expr::split_conjunction);
    conjuncts.filter(|conjunct| is_plain(conjunct)).map(Arc::clone).collect()
}

fn is_plain(expr: &Arc<dyn PhysicalExpr>) -> bool {
    use Operator::{And, Eq, Gt, GtEq, Lt, LtEq, NotEq, Or};
    let is_column = |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Column>().is_some();
    let is_value = |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Literal>().is_some();
    if let Some(binary) = expr.downcast_ref::<BinaryExpr>() {
        let (left, right) = (binary.left(), binary.right());
        return match binary.op() {
            And | Or => is_plain(left) && is_plain(right),
            Eq | NotEq | Lt | LtEq | Gt | GtEq => {
                (is_column(left) && is_value(right)) || (is_value(left) && is_column(right))
            }
            _ => false,
        };
    }
    if let Some(not) = expr.downcast_ref::<NotExpr>() {
        return is_plain(not.arg());
    }
    if let Some(list) = expr.downcast_ref::<InListExpr>() {
        return is_column(list.expr()) && list.list().iter().all(is_value);
    }
    let null = expr.downcast_ref::<IsNullExpr>().map(IsNullExpr::arg);
    null.or(expr.downcast_ref::<IsNotNullExpr>().map(IsNotNullExpr::arg)).is_some_and(is_column)
}

/// Those of `conjuncts`, over the columns of the source, whose columns all have a place in `table` by `place_of`: as one
/// predicate over `table`.
pub(super) fn over_file(
    conjuncts: &[Arc<dyn PhysicalExpr>],
    table: &SchemaRef,
    place_of: impl Fn(usize) -> Option<usize>,
) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let usable = conjuncts.iter().filter(|it| collect_columns(it).iter().all(|c| place_of(c.index()).is_some()));
    let moved = usable.map(|conjunct| {
        let moved = Arc::clone(conjunct).transform(|expr| {
            let place = expr.downcast_ref::<Column>().and_then(|column| place_of(column.index()));
            Ok(match place {
                Some(place) => {
                    Transformed::yes(Arc::new(Column::new(table.field(place).name(), place)) as Arc<dyn PhysicalExpr>)
                }
                None => Transformed::no(expr),
            })
        });
        moved.data()
    });
    Ok(datafusion::physical_expr::conjunction_opt(moved.collect::<Result<Vec<_>>>()?))
}

/// True if what the file says of its column at `index` holds for every value that the query compares as `wanted`.
pub(super) fn is_trusted(file: &ParquetMetaData, columns: &Schema, index: usize, wanted: &DataType) -> bool {
    let found = columns.field(index).data_type();
    if found.is_nested() || found.is_floating() || !is_same(found, wanted) {
        return false;
    }
    let schema = file.file_metadata().schema_descr();
    let mut leaves = (0..schema.num_columns()).filter(|leaf| schema.get_column_root_idx(*leaf) == index);
    let (Some(leaf), None) = (leaves.next(), leaves.next()) else { return false };
    let has_order = matches!(
        file.file_metadata().column_order(leaf),
        ColumnOrder::TYPE_DEFINED_ORDER(SortOrder::SIGNED | SortOrder::UNSIGNED)
    );
    has_order
        && file.row_groups().iter().all(|group| {
            let statistics = group.column(leaf).statistics();
            statistics.is_none_or(|it| it.null_count_opt().is_some() && !it.is_min_max_deprecated())
        })
}

/// Whether values of both types are compared and hashed alike.
fn is_same(found: &DataType, wanted: &DataType) -> bool {
    use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
    let text = |of: &DataType| matches!(of, Utf8 | LargeUtf8 | Utf8View);
    let bytes = |of: &DataType| matches!(of, Binary | LargeBinary | BinaryView);
    found == wanted || (text(found) && text(wanted)) || (bytes(found) && bytes(wanted))
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::Field;
    use datafusion::common::DFSchema;
    use datafusion::prelude::{Expr, SessionContext, cast, col, lit, random};
    use parquet::arrow::ArrowSchemaConverter;
    use parquet::file::metadata::{ColumnChunkMetaData, FileMetaData, RowGroupMetaData};
    use parquet::file::statistics::Statistics;

    use super::*;

    fn columns() -> Schema {
        Schema::new(vec![Field::new("i", DataType::Int32, true), Field::new("s", DataType::Utf8, true)])
    }

    #[test]
    fn only_comparisons_of_columns_with_values_are_used() {
        let session = SessionContext::new().state();
        let schema = DFSchema::try_from(columns()).unwrap();
        let used = |filter: Expr| {
            let predicate = session.create_physical_expr(filter, &schema).unwrap();
            plain(Some(&predicate)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let plain_one = || col("i").gt(lit(5));
        for filter in [plain_one(), lit(5).lt_eq(col("i")), col("s").is_null(), !col("i").eq(lit(1))] {
            assert_eq!(used(filter.clone()).len(), 1, "{filter}");
        }
        for filter in [
            cast(col("s"), DataType::Int64).gt(lit(5_i64)),
            col("i").gt(col("i") + lit(1)),
            col("s").like(lit("a%")),
            random().lt(lit(0.5)),
            plain_one().or(col("s").like(lit("a%"))),
        ] {
            assert!(used(filter.clone()).is_empty(), "{filter}");
        }
        assert_eq!(used(plain_one().and(col("s").like(lit("a%")))).len(), 1);
    }

    #[test]
    fn only_columns_with_a_place_are_moved_into_a_file() {
        let session = SessionContext::new().state();
        let schema = DFSchema::try_from(columns()).unwrap();
        let filter = col("i").gt(lit(5)).and(col("s").eq(lit("x")));
        let conjuncts = plain(Some(&session.create_physical_expr(filter, &schema).unwrap()));
        let table =
            Arc::new(Schema::new(vec![Field::new("S", DataType::Utf8, true), Field::new("I", DataType::Int32, true)]));
        let moved = |place: fn(usize) -> Option<usize>| {
            over_file(&conjuncts, &table, place).unwrap().map(|predicate| predicate.to_string())
        };
        assert_eq!(moved(|column| Some(1 - column)), Some("I@1 > 5 AND S@0 = x".to_owned()));
        assert_eq!(moved(|column| (column == 1).then_some(0)), Some("S@0 = x".to_owned()));
        assert_eq!(moved(|_| None), None);
    }

    #[test]
    fn statistics_are_trusted_if_they_say_all_there_is_to_say() {
        let columns = columns();
        let schema = Arc::new(ArrowSchemaConverter::new().convert(&columns).unwrap());
        let file = |statistics: Option<Statistics>, has_order: bool| {
            let chunk = |leaf: usize, statistics: Option<Statistics>| {
                let builder = ColumnChunkMetaData::builder(schema.column(leaf));
                match statistics {
                    Some(statistics) => builder.set_statistics(statistics),
                    None => builder,
                }
                .build()
                .unwrap()
            };
            let group = RowGroupMetaData::builder(Arc::clone(&schema));
            let group = group.set_column_metadata(vec![chunk(0, statistics), chunk(1, None)]).build().unwrap();
            let orders = has_order.then(|| {
                vec![
                    ColumnOrder::TYPE_DEFINED_ORDER(SortOrder::SIGNED),
                    ColumnOrder::TYPE_DEFINED_ORDER(SortOrder::UNSIGNED),
                ]
            });
            let file = FileMetaData::new(1, 1, None, None, Arc::clone(&schema), orders);
            ParquetMetaData::new(file, vec![group])
        };
        let bounds = |nulls: Option<u64>, old: bool| Some(Statistics::int32(Some(1), Some(2), None, nulls, old));
        for (statistics, has_order, trusted) in [
            (bounds(Some(0), false), true, true),
            (None, true, true),
            (bounds(None, false), true, false),
            (bounds(Some(0), true), true, false),
            (bounds(Some(0), false), false, false),
        ] {
            let found = is_trusted(&file(statistics.clone(), has_order), &columns, 0, &DataType::Int32);
            assert_eq!(found, trusted, "{statistics:?} {has_order}");
        }
        let file = file(bounds(Some(0), false), true);
        assert!(!is_trusted(&file, &columns, 0, &DataType::Int64), "another type");
        assert!(is_trusted(&file, &columns, 1, &DataType::Utf8View), "the same text");
        let floats = Schema::new(vec![Field::new("i", DataType::Float32, true), Field::new("s", DataType::Utf8, true)]);
        assert!(!is_trusted(&file, &floats, 0, &DataType::Float32));
    }
}
