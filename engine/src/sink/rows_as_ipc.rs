//! Rows within data that is serialised: each record batch is an Arrow IPC stream of its own, so that their schemas may differ.

use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

pub(crate) fn serialize<S: Serializer>(rows: &[RecordBatch], serializer: S) -> Result<S::Ok, S::Error> {
    let encoded: Result<Vec<Vec<u8>>, ArrowError> = rows.iter().map(encode).collect();
    encoded.map_err(ser::Error::custom)?.serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RecordBatch>, D::Error> {
    let encoded = Vec::<Vec<u8>>::deserialize(deserializer)?;
    encoded.iter().map(|rows| decode(rows)).collect::<Result<_, _>>().map_err(de::Error::custom)
}

fn encode(rows: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    let mut writer = StreamWriter::try_new(vec![], &rows.schema())?;
    writer.write(rows)?;
    writer.into_inner()
}

fn decode(encoded: &[u8]) -> Result<RecordBatch, ArrowError> {
    let missing = || ArrowError::IpcError("a stream of rows has no record batch".to_owned());
    StreamReader::try_new(encoded, None)?.next().ok_or_else(missing)?
}
