//! JSON lines to columns.

use arrow::datatypes::SchemaRef;
use arrow::json::ReaderBuilder;
use arrow::json::reader::Decoder;
use arrow::record_batch::RecordBatch;

use super::text::Decode;

/// Decodes lines that are one JSON object each. Fields count by name; one that is missing is null.
pub(super) struct JsonDecoder {
    schema: SchemaRef,
    batch_size: usize,
    /// Kept from block to block; dropped when it failed, for then it stands within a value.
    decoder: Option<Decoder>,
}

impl JsonDecoder {
    /// A decoder for these fields; an error if a type cannot be read at all.
    pub(super) fn new(schema: SchemaRef, batch_size: usize) -> Result<Self, String> {
        let mut decoder = JsonDecoder { schema, batch_size, decoder: None };
        decoder.decoder = Some(decoder.build()?);
        Ok(decoder)
    }

    fn build(&self) -> Result<Decoder, String> {
        ReaderBuilder::new(self.schema.clone())
            .with_batch_size(self.batch_size)
            // A number where text is wanted is its text.
            .with_coerce_primitive(true)
            .build_decoder()
            .map_err(|e| e.to_string())
    }
}

impl Decode for JsonDecoder {
    fn decode(&mut self, lines: &[u8]) -> Result<Vec<RecordBatch>, String> {
        let mut decoder = match self.decoder.take() {
            Some(decoder) => decoder,
            None => self.build()?,
        };
        let batches = batches(&mut decoder, lines)?;
        self.decoder = Some(decoder);
        Ok(batches)
    }
}

fn batches(decoder: &mut Decoder, lines: &[u8]) -> Result<Vec<RecordBatch>, String> {
    let mut batches = vec![];
    let mut rest = lines;
    while !rest.is_empty() {
        let read = decoder.decode(rest).map_err(|e| e.to_string())?;
        rest = rest.get(read..).unwrap_or_default();
        if !rest.is_empty() {
            // It stops early only when a batch is full.
            let Some(rows) = decoder.flush().map_err(|e| e.to_string())? else {
                return Err("the decoder makes no progress".to_owned());
            };
            batches.push(rows);
        }
    }
    if decoder.has_partial_record() {
        return Err("the JSON object does not end on its line".to_owned());
    }
    batches.extend(decoder.flush().map_err(|e| e.to_string())?);
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let records = lines.split_inclusive(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()).count();
    if rows == records { Ok(batches) } else { Err("a line must hold one JSON object".to_owned()) }
}
