//! How expressions, values and types are spelled in a checkpoint. Nobody's `Display` has a say: it may change any day.
//!
//! | | |
//! |---|---|
//! | a column | what it is at its source, `source0.k` |
//! | a value | with its type: `5:int64`, `"a":text`, `null:date32` |
//! | an operator | `(a + b)`, `(not a)`, `(a is null)` |
//! | a function | `name(arguments)` |
//! | CASE | `case(of x, when a then b, …, else c)` |
//! | a cast | `cast(a as int64)` |
//!
//! What is not known here is an `expression` of its parts: so far that is nothing users write.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::async_scalar_function::AsyncFuncExpr;
use datafusion::physical_expr::expressions::{
    BinaryExpr, CaseExpr, CastExpr, Column, InListExpr, IsNotNullExpr, IsNullExpr, LambdaExpr, LambdaVariable,
    LikeExpr, Literal, NegativeExpr, NotExpr, TryCastExpr,
};
use datafusion::physical_expr::{HigherOrderFunctionExpr, PhysicalExpr, ScalarFunctionExpr};
use twox_hash::XxHash64;

use crate::window::functions::{Kind, WindowFunction};

/// So many characters are spelled out; of what is longer, a hash stands for the rest.
const LENGTH_MAX: usize = 600;

/// An expression, given what its columns are.
pub(super) fn words(expr: &Arc<dyn PhysicalExpr>, column: &mut dyn FnMut(usize) -> String) -> String {
    macro_rules! known {
        ($of_type:ty) => {
            expr.downcast_ref::<$of_type>()
        };
    }
    if let Some(found) = known!(Column) {
        return column(found.index());
    }
    if let Some(literal) = known!(Literal) {
        return value(literal.value());
    }
    let mut all =
        |exprs: &[&Arc<dyn PhysicalExpr>]| -> Vec<String> { exprs.iter().map(|expr| words(expr, column)).collect() };
    let described = if let Some(binary) = known!(BinaryExpr) {
        let parts = all(&[binary.left(), binary.right()]);
        format!("({})", parts.join(&format!(" {} ", operator(*binary.op()))))
    } else if let Some(cast) = known!(CastExpr) {
        format!("cast({} as {})", all(&[cast.expr()]).concat(), type_words(cast.cast_type()))
    } else if let Some(cast) = known!(TryCastExpr) {
        format!("try_cast({} as {})", all(&[cast.expr()]).concat(), type_words(cast.cast_type()))
    } else if let Some(not) = known!(NotExpr) {
        format!("(not {})", all(&[not.arg()]).concat())
    } else if let Some(null) = known!(IsNullExpr) {
        format!("({} is null)", all(&[null.arg()]).concat())
    } else if let Some(null) = known!(IsNotNullExpr) {
        format!("({} is not null)", all(&[null.arg()]).concat())
    } else if let Some(negative) = known!(NegativeExpr) {
        format!("(- {})", all(&[negative.arg()]).concat())
    } else if let Some(list) = known!(InListExpr) {
        let not = if list.negated() { "not " } else { "" };
        let items = all(&list.list().iter().collect::<Vec<_>>());
        format!("({} {not}in [{}])", all(&[list.expr()]).concat(), items.join(", "))
    } else if let Some(like) = known!(LikeExpr) {
        let not = if like.negated() { "not " } else { "" };
        let how = if like.case_insensitive() { "ilike" } else { "like" };
        format!("({})", all(&[like.expr(), like.pattern()]).join(&format!(" {not}{how} ")))
    } else if let Some(case) = known!(CaseExpr) {
        let mut parts: Vec<String> = case.expr().map(|of| format!("of {}", all(&[of]).concat())).into_iter().collect();
        for (when, then) in case.when_then_expr() {
            parts.push(format!("when {}", all(&[when, then]).join(" then ")));
        }
        parts.extend(case.else_expr().map(|other| format!("else {}", all(&[other]).concat())));
        call("case", &parts)
    } else if let Some(function) = known!(ScalarFunctionExpr)
        && let [value] = function.args()
        && function
            .fun()
            .inner()
            .downcast_ref::<WindowFunction>()
            .is_some_and(|f| matches!(f.kind(), Kind::Unmark | Kind::PlainMark))
    {
        // It changes no value.
        words(value, column)
    } else if let Some(function) = known!(ScalarFunctionExpr) {
        let described = call(&name(function.fun().name()), &all(&function.args().iter().collect::<Vec<_>>()));
        // The session's time zone decides what a text without one means.
        match function.return_type() {
            DataType::Timestamp(_, Some(zone)) if function.fun().name().starts_with("to_timestamp") => {
                format!("{described} in {}", name(zone))
            }
            _ => described,
        }
    } else if let Some(function) = known!(HigherOrderFunctionExpr) {
        call(&name(function.name()), &all(&function.args().iter().collect::<Vec<_>>()))
    } else if let Some(lambda) = known!(LambdaExpr) {
        format!("({} -> {})", lambda.params().join(", "), all(&[lambda.body()]).concat())
    } else if let Some(parameter) = known!(LambdaVariable) {
        name(parameter.name())
    } else if let Some(computed) = known!(AsyncFuncExpr) {
        all(&[&computed.func]).concat()
    } else {
        call("expression", &all(&expr.children()))
    };
    shortened(described)
}

pub(super) fn call(function: &str, arguments: &[String]) -> String {
    format!("{function}({})", arguments.join(", "))
}

/// A name as it is where that is plain, otherwise in quotes.
pub(super) fn name(text: &str) -> String {
    let is_plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// Without the numbers in names that DataFusion makes up, and without the places that columns have.
pub(super) fn without_numbers(text: &str) -> String {
    let mut described = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = ["__common_expr_", "__datafusion_extracted_", "@"]
        .iter()
        .filter_map(|made_up| rest.find(made_up).map(|at| at + made_up.len()))
        .min()
    {
        let (before, after) = rest.split_at(at);
        described.push_str(before);
        rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    described + rest
}

/// The words themselves, unless there are too many.
pub(super) fn shortened(described: String) -> String {
    if described.len() <= LENGTH_MAX {
        return described;
    }
    let begin: String = described.chars().take(LENGTH_MAX / 4).collect();
    format!("{begin}…#{:016x}", XxHash64::oneshot(0, described.as_bytes()))
}

fn operator(operator: Operator) -> &'static str {
    use Operator::{
        And, Arrow, ArrowAt, AtArrow, AtAt, AtQuestion, BitwiseAnd, BitwiseOr, BitwiseShiftLeft, BitwiseShiftRight,
        BitwiseXor, Colon, Divide, Eq, Gt, GtEq, HashArrow, HashLongArrow, HashMinus, ILikeMatch, IntegerDivide,
        IsDistinctFrom, IsNotDistinctFrom, LikeMatch, LongArrow, Lt, LtEq, Minus, Modulo, Multiply, NotEq,
        NotILikeMatch, NotLikeMatch, Or, Plus, Question, QuestionAnd, QuestionPipe, RegexIMatch, RegexMatch,
        RegexNotIMatch, RegexNotMatch, StringConcat,
    };
    match operator {
        Eq => "=",
        NotEq => "!=",
        Lt => "<",
        LtEq => "<=",
        Gt => ">",
        GtEq => ">=",
        Plus => "+",
        Minus => "-",
        Multiply => "*",
        Divide => "/",
        Modulo => "%",
        And => "and",
        Or => "or",
        IsDistinctFrom => "is distinct from",
        IsNotDistinctFrom => "is not distinct from",
        RegexMatch => "~",
        RegexIMatch => "~*",
        RegexNotMatch => "!~",
        RegexNotIMatch => "!~*",
        BitwiseAnd => "&",
        BitwiseOr => "|",
        BitwiseXor => "xor",
        BitwiseShiftRight => ">>",
        BitwiseShiftLeft => "<<",
        StringConcat => "||",
        LikeMatch => "~~",
        ILikeMatch => "~~*",
        NotLikeMatch => "!~~",
        NotILikeMatch => "!~~*",
        AtArrow => "@>",
        ArrowAt => "<@",
        Arrow => "->",
        LongArrow => "->>",
        HashArrow => "#>",
        HashLongArrow => "#>>",
        HashMinus => "#-",
        AtAt => "@@",
        AtQuestion => "@?",
        Question => "?",
        QuestionAnd => "?&",
        QuestionPipe => "?|",
        IntegerDivide => "DIV",
        Colon => ":",
    }
}

/// A value and its type.
pub(super) fn value(value: &ScalarValue) -> String {
    use ScalarValue as V;
    let of_type = type_words(&value.data_type());
    if value.is_null() {
        return format!("null:{of_type}");
    }
    let text = match value {
        V::Boolean(Some(v)) => v.to_string(),
        V::Int8(Some(v)) => v.to_string(),
        V::Int16(Some(v)) => v.to_string(),
        V::Int32(Some(v)) | V::Date32(Some(v)) | V::Time32Second(Some(v)) | V::Time32Millisecond(Some(v)) => {
            v.to_string()
        }
        V::Int64(Some(v))
        | V::Date64(Some(v))
        | V::Time64Microsecond(Some(v))
        | V::Time64Nanosecond(Some(v))
        | V::TimestampSecond(Some(v), _)
        | V::TimestampMillisecond(Some(v), _)
        | V::TimestampMicrosecond(Some(v), _)
        | V::TimestampNanosecond(Some(v), _)
        | V::DurationSecond(Some(v))
        | V::DurationMillisecond(Some(v))
        | V::DurationMicrosecond(Some(v))
        | V::DurationNanosecond(Some(v)) => v.to_string(),
        V::UInt8(Some(v)) => v.to_string(),
        V::UInt16(Some(v)) => v.to_string(),
        V::UInt32(Some(v)) => v.to_string(),
        V::UInt64(Some(v)) => v.to_string(),
        V::Float32(Some(v)) => format!("{v:?}"),
        V::Float64(Some(v)) => format!("{v:?}"),
        V::Decimal32(Some(v), ..) => v.to_string(),
        V::Decimal64(Some(v), ..) => v.to_string(),
        V::Decimal128(Some(v), ..) => v.to_string(),
        V::Utf8(Some(v)) | V::LargeUtf8(Some(v)) | V::Utf8View(Some(v)) => {
            serde_json::Value::from(v.as_str()).to_string()
        }
        V::Binary(Some(v)) | V::LargeBinary(Some(v)) | V::BinaryView(Some(v)) | V::FixedSizeBinary(_, Some(v)) => {
            v.iter().map(|byte| format!("{byte:02x}")).collect()
        }
        V::IntervalYearMonth(Some(v)) => format!("{v} months"),
        V::IntervalDayTime(Some(v)) => format!("{} days {} ms", v.days, v.milliseconds),
        V::IntervalMonthDayNano(Some(v)) => format!("{} months {} days {} ns", v.months, v.days, v.nanoseconds),
        V::Dictionary(_, v) | V::RunEndEncoded(_, _, v) => return self::value(v),
        V::Union(Some((_, v)), ..) => self::value(v),
        V::Float16(Some(v)) => format!("{:?}", v.to_f32()),
        V::Decimal256(Some(v), ..) => v.to_string(),
        V::List(one) => elements(&one.value(0)),
        V::LargeList(one) => elements(&one.value(0)),
        V::FixedSizeList(one) => elements(&one.value(0)),
        V::ListView(one) => elements(&one.value(0)),
        V::LargeListView(one) => elements(&one.value(0)),
        V::Map(one) => elements(&(Arc::new(one.value(0)) as ArrayRef)),
        V::Struct(one) => format!("{{{}}}", one.columns().iter().map(elements).collect::<Vec<_>>().join(", ")),
        // All that are null are spelled above.
        _ => String::new(),
    };
    format!("{text}:{of_type}")
}

/// The values of a list, of a map, or of a field of one struct.
fn elements(values: &ArrayRef) -> String {
    let spelled = (0..values.len()).map(|row| match ScalarValue::try_from_array(values, row) {
        Ok(element) => value(&element),
        Err(_) => "?".to_owned(),
    });
    format!("[{}]", spelled.collect::<Vec<_>>().join(", "))
}

/// A type. Texts of all widths are one, as are binaries: which of them a plan has is DataFusion's choice.
fn type_words(of_type: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match of_type {
        DataType::Null => "null".to_owned(),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 => "int8".to_owned(),
        DataType::Int16 => "int16".to_owned(),
        DataType::Int32 => "int32".to_owned(),
        DataType::Int64 => "int64".to_owned(),
        DataType::UInt8 => "uint8".to_owned(),
        DataType::UInt16 => "uint16".to_owned(),
        DataType::UInt32 => "uint32".to_owned(),
        DataType::UInt64 => "uint64".to_owned(),
        DataType::Float16 => "float16".to_owned(),
        DataType::Float32 => "float32".to_owned(),
        DataType::Float64 => "float64".to_owned(),
        DataType::Date32 => "date32".to_owned(),
        DataType::Date64 => "date64".to_owned(),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "text".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "binary".to_owned()
        }
        DataType::Timestamp(u, None) => format!("timestamp({})", unit(u)),
        DataType::Timestamp(u, Some(zone)) => format!("timestamp({}, {})", unit(u), name(zone)),
        DataType::Time32(u) | DataType::Time64(u) => format!("time({})", unit(u)),
        DataType::Duration(u) => format!("duration({})", unit(u)),
        DataType::Decimal32(p, s)
        | DataType::Decimal64(p, s)
        | DataType::Decimal128(p, s)
        | DataType::Decimal256(p, s) => {
            format!("decimal({p}, {s})")
        }
        DataType::Dictionary(_, values) => type_words(values),
        DataType::RunEndEncoded(_, values) => type_words(values.data_type()),
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => format!("list({})", type_words(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{} {}", name(f.name()), type_words(f.data_type()))).collect();
            call("struct", &fields)
        }
        DataType::Map(entries, _) => format!("map({})", type_words(entries.data_type())),
        DataType::Union(fields, _) => {
            call("union", &fields.iter().map(|(_, f)| type_words(f.data_type())).collect::<Vec<_>>())
        }
        DataType::Interval(IntervalUnit::YearMonth) => "Interval(YearMonth)".to_owned(),
        DataType::Interval(IntervalUnit::DayTime) => "Interval(DayTime)".to_owned(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "Interval(MonthDayNano)".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Schema};
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, case, cast, col, in_list, is_null, lit, not};

    use super::*;

    /// What is on disk: an expectation that is to change is a checkpoint that cannot be continued.
    #[test]
    fn expressions_are_spelled_as_they_were() {
        let schema = Schema::new(vec![Field::new("v", DataType::Int64, true), Field::new("a b", DataType::Utf8, true)]);
        let (v, text) = (col("v", &schema).unwrap(), col("a b", &schema).unwrap());
        let more = binary(Arc::clone(&v), Operator::Plus, lit(1_i64), &schema).unwrap();
        let large = binary(Arc::clone(&v), Operator::Gt, lit(1_i64), &schema).unwrap();
        for (expr, expected) in [
            (Arc::clone(&more), "(source0.v + 1:int64)"),
            (not(Arc::clone(&large)).unwrap(), "(not (source0.v > 1:int64))"),
            (is_null(Arc::clone(&text)).unwrap(), "(source0.\"a b\" is null)"),
            (cast(more, &schema, DataType::Float64).unwrap(), "cast((source0.v + 1:int64) as float64)"),
            (
                case(None, vec![(large, lit(0.5))], Some(lit(ScalarValue::Float64(None)))).unwrap(),
                "case(when (source0.v > 1:int64) then 0.5:float64)",
            ),
            (
                in_list(text, vec![lit("x"), lit("y\"")], &true, &schema).unwrap(),
                "(source0.\"a b\" not in [\"x\":text, \"y\\\"\":text])",
            ),
            (lit(ScalarValue::TimestampMillisecond(Some(5), Some("UTC".into()))), "5:timestamp(ms, UTC)"),
            (lit(ScalarValue::Decimal128(Some(150), 5, 2)), "150:decimal(5, 2)"),
            (
                lit(ScalarValue::List(ScalarValue::new_list_nullable(
                    &[1_i64.into(), ScalarValue::Int64(None)],
                    &DataType::Int64,
                ))),
                "[1:int64, null:int64]:list(int64)",
            ),
            (
                lit(ScalarValue::from(vec![("a", ScalarValue::from(true)), ("b c", ScalarValue::from("x"))])),
                "{[true:boolean], [\"x\":text]}:struct(a boolean, \"b c\" text)",
            ),
            (lit(ScalarValue::new_interval_mdn(1, 2, 3)), "1 months 2 days 3 ns:Interval(MonthDayNano)"),
        ] {
            let described = words(&expr, &mut |column| format!("source0.{}", name(schema.field(column).name())));
            assert_eq!(described, expected);
        }
    }

    #[test]
    fn made_up_numbers_do_not_count() {
        assert_eq!(without_numbers("sum(__common_expr_12 + v@3)"), "sum(__common_expr_ + v@)");
        assert_eq!(without_numbers("count(1)"), "count(1)");
    }

    #[test]
    fn long_words_differ_as_long_as_they_do() {
        let long = |end: &str| shortened("é".repeat(1_000) + end);
        assert_ne!(long("a"), long("b"));
        assert!(long("a").len() < LENGTH_MAX);
    }
}
