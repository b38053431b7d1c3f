//! CSV records to columns.
//!
//! Without a header, columns count by position. With one they count by name, in any order, unless the option
//! `enforceSchema` says that they do not, see [`super::header`].

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Fields, SchemaRef};
use tidewater::error::Result;

use super::csv_records::{Found, Span};
use super::decode::{Decode, LONGEST, Step};
use super::header::Header;
use super::tally::Tally;
use crate::file::format::CsvFormat;
use crate::file::names::Names;
use crate::values::Record;

/// How far a quote may be open over line ends until it is taken for one that nobody closes.
const OPEN_QUOTE_BYTES: usize = 16 << 20;

/// What is to be known where a header is read: how names are compared, and where a file that lacks a column is counted.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) names: Names,
    pub(super) tally: Arc<Tally>,
}

/// Decodes CSV.
pub(super) struct CsvDecoder {
    format: CsvFormat,
    head: Head,
    /// The columns of the file, as declared.
    schema: SchemaRef,
    record: Record,
    /// Where in the file the wanted columns are; `None` where the file has no such column.
    places: Vec<Option<usize>>,
    /// How many fields a record has.
    width: usize,
    header_is_due: bool,
    spans: Vec<Span>,
}

impl CsvDecoder {
    /// A decoder of files with the columns of `schema`, for those at `positions`.
    pub(super) fn new(
        format: &CsvFormat,
        schema: SchemaRef,
        positions: Vec<usize>,
        head: Head,
    ) -> Result<Self, String> {
        let wanted: Fields = positions.iter().filter_map(|place| schema.fields().get(*place)).cloned().collect();
        if let Some(field) = wanted.iter().find(|field| !is_plain(field.data_type())) {
            return Err(format!("CSV has no {}", field.data_type()));
        }
        Ok(CsvDecoder {
            format: format.clone(),
            head,
            width: schema.fields().len(),
            record: Record::new(&wanted)?,
            places: positions.into_iter().map(Some).collect(),
            header_is_due: format.header,
            schema,
            spans: vec![],
        })
    }

    fn read_header(&mut self, text: &str) -> Result<()> {
        if self.format.enforce_schema {
            return Ok(());
        }
        let found: Vec<_> = self.spans.iter().map(|span| self.format.field(text, *span).into_owned()).collect();
        let declared: Vec<_> = self.schema.fields().iter().map(|field| field.name().as_str()).collect();
        let header = Header::compare(&found, &declared, self.head.names)?;
        let lacks = header.lacks.iter().filter_map(|i| declared.get(*i)).map(ToString::to_string);
        self.head.tally.file_lacks(lacks.collect());
        let place_of = |declared: usize| header.columns.iter().position(|column| *column == Some(declared));
        self.places = self.places.iter().map(|place| place.and_then(place_of)).collect();
        self.width = found.len();
        Ok(())
    }

    fn append(&mut self, text: &str) -> Result<(), String> {
        let CsvDecoder { format, record, places, spans, .. } = self;
        record.append_texts(places.iter().map(|place| {
            let span = *spans.get((*place)?)?;
            let field = format.field(text, span);
            // As in Spark: nothing at all is null, and so is the spelling of null, in quotes too.
            let is_null = (field.is_empty() && !span.quoted) || *field == *format.null_value;
            (!is_null).then_some(field)
        }))
    }
}

/// Whether a value of this type is a field of CSV.
pub(super) fn is_plain(data_type: &DataType) -> bool {
    use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary};
    match data_type {
        DataType::Dictionary(_, value) => is_plain(value),
        Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => false,
        other => !other.is_nested(),
    }
}

impl Decode for CsvDecoder {
    fn next(&mut self, text: &[u8], is_last: bool) -> Result<Step> {
        let is_last = is_last || text.len() > OPEN_QUOTE_BYTES;
        let mut spans = std::mem::take(&mut self.spans);
        let found = self.format.record(text, is_last, &mut spans);
        self.spans = spans;
        let malformed = |bytes: usize, why: &str| Ok(Step::Malformed { bytes, rows: 0, why: why.to_owned() });
        let (bytes, has_line_break) = match found {
            Found::Unfinished => return Ok(Step::Unfinished),
            Found::Nothing(bytes) => return Ok(Step::Rows { bytes, rows: 0 }),
            Found::Unclosed(bytes) => return malformed(bytes, "a quote is opened and not closed"),
            Found::Record { bytes, has_line_break } => (bytes, has_line_break),
        };
        if bytes > LONGEST {
            return malformed(bytes, "it is too long");
        }
        let record = match std::str::from_utf8(text.get(..bytes).unwrap_or_default()) {
            Ok(record) => record,
            Err(e) => return malformed(bytes, &format!("it is not UTF-8: {e}")),
        };
        if std::mem::take(&mut self.header_is_due) {
            self.read_header(record)?;
            return Ok(Step::Rows { bytes, rows: 0 });
        }
        if has_line_break && !self.format.multi_line {
            return malformed(bytes, "a field in quotes has a line break (the option `multiLine` allows that)");
        }
        if self.spans.len() != self.width {
            let why = format!("wrong number of fields: expected {} got {}", self.width, self.spans.len());
            return malformed(bytes, &why);
        }
        Ok(match self.append(record) {
            Ok(()) => Step::Rows { bytes, rows: 1 },
            Err(why) => Step::Malformed { bytes, rows: 1, why },
        })
    }

    fn append_nulls(&mut self) {
        self.record.append_nulls();
    }

    fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        Ok(self.record.finish()?)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::AsArray;
    use arrow::datatypes::{Field, Int64Type, Schema};

    use super::*;

    fn head() -> Head {
        Head { names: Names { case_sensitive: false }, tally: Arc::default() }
    }

    /// The rows, and what is wrong with the others.
    fn read(format: &CsvFormat, text: &str) -> (Vec<String>, Vec<String>) {
        let fields = vec![Field::new("s", DataType::Utf8, true), Field::new("n", DataType::Int64, true)];
        let mut decoder = CsvDecoder::new(format, Arc::new(Schema::new(fields)), vec![0, 1], head()).unwrap();
        let (mut rest, mut good, mut bad) = (text.as_bytes(), vec![], vec![]);
        while !rest.is_empty() {
            let bytes = match decoder.next(rest, true).unwrap() {
                Step::Unfinished => panic!("{rest:?}"),
                Step::Rows { bytes, rows } => {
                    good.extend(std::iter::repeat_n(true, rows));
                    bytes
                }
                Step::Malformed { bytes, rows, why } => {
                    good.extend(std::iter::repeat_n(false, rows));
                    bad.push(why);
                    bytes
                }
            };
            rest = &rest[bytes..];
        }
        let columns = decoder.finish().unwrap();
        let (texts, numbers) = (columns[0].as_string::<i32>(), columns[1].as_primitive::<Int64Type>());
        let rows = texts.iter().zip(numbers.iter()).zip(good).filter(|(_, good)| *good);
        (rows.map(|((s, n), _)| format!("{} {n:?}", s.unwrap_or("·"))).collect(), bad)
    }

    fn rows(format: &CsvFormat, text: &str) -> Vec<String> {
        let (rows, bad) = read(format, text);
        assert!(bad.is_empty(), "{text}: {bad:?}");
        rows
    }

    #[test]
    fn lines_become_rows() {
        let format = CsvFormat::default();
        let text = "a,1\n\n   \n\"b,c\",2\r\n,\nd,3\re,+4\r\"\",5\n";
        assert_eq!(rows(&format, text), ["a Some(1)", "b,c Some(2)", "· None", "d Some(3)", "e Some(4)", "· Some(5)"]);
        assert!(rows(&format, "").is_empty());
    }

    #[test]
    fn quotes_are_doubled_or_escaped_and_other_backslashes_stay() {
        let format = CsvFormat::default();
        for (field, wanted) in [
            (r#""say ""hi"", twice""#, r#"say "hi", twice"#),
            (r#""say \"hi\", twice""#, r#"say "hi", twice"#),
            (r#""C:\temp\\x""#, r"C:\temp\x"),
            (r"C:\temp\", r"C:\temp\"),
            (r#"c"d"#, r#"c"d"#),
            (r#""x"y"#, r#""x"y"#),
            (r#"a"b"c"#, r#"a"b"c"#),
        ] {
            assert_eq!(rows(&format, &format!("{field},1\n")), [format!("{wanted} Some(1)")], "{field}");
        }
        let doubled_only = CsvFormat { escape: b'"', ..format };
        assert_eq!(rows(&doubled_only, "\"C:\\\",1\n"), ["C:\\ Some(1)"]);
    }

    #[test]
    fn what_is_wrong_is_told_and_the_neighbours_are_read() {
        for (line, answer) in [
            ("a\n", "wrong number of fields: expected 2 got 1"),
            ("a,1,2\n", "wrong number of fields: expected 2 got 3"),
            ("a,1,\n", "wrong number of fields: expected 2 got 3"),
            ("a,x\n", "field 'n': 'x' is not a valid Int64"),
            ("a,1.0\n", "field 'n': '1.0' is not a valid Int64"),
            ("a, 1\n", "field 'n': ' 1' is not a valid Int64"),
            ("a,9223372036854775808\n", "field 'n'"),
            ("\"a,1\n", "a quote is opened and not closed"),
            ("\"two\nlines\",1\n", "line break"),
            ("a,\"two\nlines,7\"\n", "line break"),
        ] {
            let (good, bad) = read(&CsvFormat::default(), &format!("x,1\n{line}z,3\n"));
            assert_eq!(good, ["x Some(1)", "z Some(3)"], "{line}");
            assert!(bad.len() == 1 && bad[0].contains(answer), "{line}: {bad:?}");
        }
        let format = CsvFormat { multi_line: true, ..CsvFormat::default() };
        assert_eq!(rows(&format, "\"two\nlines\",1\n"), ["two\nlines Some(1)"]);
        let (good, bad) = read(&format, "\"a\nb,1\",x\nc,2\n");
        assert_eq!((good, bad.len()), (vec!["c Some(2)".to_owned()], 1));
    }

    #[test]
    fn comments_delimiters_and_nulls_are_as_told() {
        let format =
            CsvFormat { delimiter: b'\t', comment: Some(b'#'), null_value: "NA".to_owned(), ..CsvFormat::default() };
        let text = "# a comment\nNA\t1\nb\tNA\n\t\n\"\"\t+7\n";
        assert_eq!(rows(&format, text), ["· Some(1)", "b None", "· None", " Some(7)"]);
        assert_eq!(read(&format, "a\t1.0\n").1.len(), 1, "null's spelling does not change what a number is");
    }

    #[test]
    fn a_header_is_read_by_name_or_refused() {
        let format = CsvFormat { header: true, ..CsvFormat::default() };
        assert_eq!(rows(&format, "s,n\na,1\n"), ["a Some(1)"]);
        assert_eq!(rows(&format, "n,s\n1,a\n"), ["a Some(1)"]);
        assert_eq!(rows(&format, "N,extra,S\n1,?,a\n"), ["a Some(1)"]);
        assert_eq!(rows(&format, "s\na\n"), ["a None"]);
        let enforced = CsvFormat { enforce_schema: true, ..format.clone() };
        assert_eq!(rows(&enforced, "n,s\na,1\n"), ["a Some(1)"]);
        let schema =
            Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true), Field::new("n", DataType::Int64, true)]));
        for header in ["s,m\n", "x,y\n", "n,n,s\n", "q\n"] {
            let mut decoder = CsvDecoder::new(&format, Arc::clone(&schema), vec![1], head()).unwrap();
            let error = decoder.next(header.as_bytes(), true).unwrap_err();
            assert!(error.message().contains("header") && error.hint().unwrap().contains("enforceSchema"), "{error}");
        }
    }

    #[test]
    fn a_record_goes_on_in_the_next_block() {
        let format = CsvFormat { multi_line: true, ..CsvFormat::default() };
        let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Utf8, true)]));
        let mut decoder = CsvDecoder::new(&format, schema, vec![0], head()).unwrap();
        assert!(matches!(decoder.next(b"\"a\n", false).unwrap(), Step::Unfinished));
        assert!(matches!(decoder.next(b"\"a\nb\"\n", false).unwrap(), Step::Rows { bytes: 6, rows: 1 }));
        assert!(matches!(decoder.next(b"\"a\n", true).unwrap(), Step::Malformed { bytes: 3, rows: 0, .. }));
    }
}
