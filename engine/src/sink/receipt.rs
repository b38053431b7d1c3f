//! What a finished partition gives the driver.

use arrow::record_batch::RecordBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::rows_as_ipc;
use crate::error::{Error, Result};

/// What a finished partition hands to [`StreamingWrite::commit`](super::StreamingWrite::commit): how many rows it took, and
/// whatever the sink needs to make them visible.
///
/// A receipt is data and nothing else: the partition may have run in another process than the one that commits. A sink that
/// writes files puts their names in, as [JSON](Self::with_json); one whose rows are committed by the driver puts
/// [the rows](Self::with_rows) in, which costs nothing as long as both are one process.
///
/// ```
/// use tidewater::sink::Receipt;
///
/// let receipt = Receipt::new(3).with_json(&["part-0.parquet"])?;
/// assert_eq!(receipt.rows, 3);
/// assert_eq!(receipt.json::<Vec<String>>()?, ["part-0.parquet"]);
/// # Ok::<_, tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// Rows taken.
    pub rows: u64,
    contents: Contents,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Contents {
    Nothing,
    Json(String),
    #[serde(with = "rows_as_ipc")]
    Rows(Vec<RecordBatch>),
}

impl Receipt {
    /// A receipt for `rows` rows, without contents.
    pub fn new(rows: u64) -> Self {
        Receipt { rows, contents: Contents::Nothing }
    }

    /// The same receipt, with contents that become JSON.
    ///
    /// # Errors
    ///
    /// If they cannot: a map whose keys are not text, say.
    pub fn with_json(self, contents: &impl Serialize) -> Result<Self> {
        let contents = serde_json::to_string(contents)
            .map_err(|e| Error::internal(format!("a sink's receipt cannot become JSON: {e}")).with_source(e))?;
        Ok(Receipt { contents: Contents::Json(contents), ..self })
    }

    /// The same receipt, with rows.
    pub fn with_rows(self, rows: Vec<RecordBatch>) -> Self {
        Receipt { contents: Contents::Rows(rows), ..self }
    }

    /// The contents, as given to [`with_json`](Self::with_json).
    ///
    /// # Errors
    ///
    /// If there are none, or they are others: the receipt is another sink's.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let Contents::Json(contents) = &self.contents else {
            return Err(Error::internal("a sink was given a receipt without its contents"));
        };
        serde_json::from_str(contents)
            .map_err(|e| Error::internal(format!("a sink was given a foreign receipt: {e}")).with_source(e))
    }

    /// The rows, as given to [`with_rows`](Self::with_rows).
    ///
    /// # Errors
    ///
    /// If there are none, or the contents are others: the receipt is another sink's.
    pub fn into_rows(self) -> Result<Vec<RecordBatch>> {
        match self.contents {
            Contents::Rows(rows) => Ok(rows),
            _ => Err(Error::internal("a sink was given a receipt without its rows")),
        }
    }

    /// Whether it has contents.
    pub fn has_contents(&self) -> bool {
        !matches!(self.contents, Contents::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, DictionaryArray, StringViewArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn contents_are_the_same_on_the_other_side() {
        let view: ArrayRef = Arc::new(StringViewArray::from(vec![Some("a text that is not short"), None]));
        let dictionary: ArrayRef = Arc::new(DictionaryArray::<Int32Type>::from_iter([Some("x"), Some("y")]));
        let one = RecordBatch::try_from_iter([("view", view)]).unwrap();
        let other = RecordBatch::try_from_iter([("dictionary", dictionary)]).unwrap();
        for receipt in [
            Receipt::new(u64::MAX),
            Receipt::new(1).with_json(&("file", 7)).unwrap(),
            Receipt::new(4).with_rows(vec![one.slice(1, 1), other, one]),
        ] {
            let text = serde_json::to_string(&receipt).unwrap();
            assert_eq!(serde_json::from_str::<Receipt>(&text).unwrap(), receipt);
        }
    }

    #[test]
    fn foreign_contents_are_none() {
        let receipt = Receipt::new(1).with_json(&"file").unwrap();
        assert!(receipt.json::<u64>().is_err());
        assert!(receipt.into_rows().is_err());
        assert!(Receipt::new(1).json::<String>().is_err());
    }
}
