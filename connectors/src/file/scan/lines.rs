//! A file as blocks of whole lines.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::error::{DataFusionError, Result};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetResultPayload, ObjectStore, ObjectStoreExt};
use tidewater::error::{Error, ErrorKind};

/// About how many bytes a block has: large enough to be decoded column by column, small enough for a cache.
const BLOCK_BYTES: usize = 1 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Some lines of a file; each ends with a line feed.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) text: Vec<u8>,
    /// The number of the first line, counted from 1.
    pub(super) first_line: u64,
}

/// Reads a file block by block.
pub(super) struct Lines {
    input: Input,
    /// What was read after the last whole line.
    rest: Vec<u8>,
    next_line: u64,
    ended: bool,
}

enum Input {
    /// A local file is read in place: one call brings a whole block.
    Local(Box<dyn Read + Send>),
    /// Chunks as they come, and what is left of the last one.
    Remote(BoxStream<'static, Result<Bytes>>, Bytes),
}

impl Lines {
    /// Opens `path`, decompressed.
    pub(super) async fn open(
        store: Arc<dyn ObjectStore>,
        path: &Path,
        compression: FileCompressionType,
    ) -> Result<Self> {
        let found = store.get(path).await.map_err(|e| DataFusionError::ObjectStore(Box::new(e)))?;
        let input = match found.payload {
            GetResultPayload::File(file, _) => Input::Local(compression.convert_read(file)?),
            GetResultPayload::Stream(bytes) => {
                let bytes = bytes.map_err(|e| DataFusionError::ObjectStore(Box::new(e))).boxed();
                Input::Remote(compression.convert_stream(bytes)?, Bytes::new())
            }
        };
        Ok(Lines { input, rest: vec![], next_line: 1, ended: false })
    }

    /// The next lines, until there are none.
    pub(super) async fn next(&mut self) -> Result<Option<Block>> {
        let mut text = std::mem::take(&mut self.rest);
        let mut searched = 0;
        let end = loop {
            self.fill(&mut text).await?;
            if self.next_line == 1
                && let Some((what, todo)) = super::foreign::kind_of(&text)
            {
                let message =
                    format!("the file is {what}, and its name says that it is plain text or compressed otherwise");
                return Err(Error::new(ErrorKind::BadInput, message).hint(format!("{todo}, or move it away")).into());
            }
            if self.ended {
                if text.last().is_some_and(|last| *last != b'\n') {
                    text.push(b'\n');
                }
                break text.len();
            }
            if let Some(at) = text.iter().skip(searched).rposition(|byte| *byte == b'\n') {
                break searched + at + 1;
            }
            // A line longer than a block.
            searched = text.len();
        };
        self.rest = text.split_off(end);
        if self.next_line == 1 && text.starts_with(BYTE_ORDER_MARK) {
            text.drain(..BYTE_ORDER_MARK.len());
        }
        if text.is_empty() {
            return Ok(None);
        }
        let first_line = self.next_line;
        self.next_line += count_lines(&text);
        Ok(Some(Block { text, first_line }))
    }

    /// Reads about a block more, or notes the end.
    async fn fill(&mut self, text: &mut Vec<u8>) -> Result<()> {
        match &mut self.input {
            Input::Local(file) => {
                let read = file.take(BLOCK_BYTES as u64).read_to_end(text)?;
                self.ended = read < BLOCK_BYTES;
            }
            Input::Remote(chunks, chunk) => {
                let wanted = text.len() + BLOCK_BYTES;
                while text.len() < wanted && !self.ended {
                    text.extend_from_slice(&chunk.split_to(chunk.len().min(wanted - text.len())));
                    if chunk.is_empty() {
                        match chunks.try_next().await? {
                            Some(next) => *chunk = next,
                            None => self.ended = true,
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// How many line feeds there are.
pub(super) fn count_lines(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// A line without its end.
pub(super) fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// The first half of the lines in `text` and the second; `None` if there is but one.
pub(super) fn halves(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let middle = text.len() / 2;
    let (before, after) = text.split_at(middle);
    let at = match after.iter().position(|byte| *byte == b'\n') {
        Some(at) if middle + at + 1 < text.len() => middle + at + 1,
        _ => before.iter().rposition(|byte| *byte == b'\n')? + 1,
    };
    Some(text.split_at(at))
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::*;

    async fn blocks(text: &[u8]) -> Vec<(u64, String)> {
        let store = Arc::new(InMemory::new());
        let path = Path::from("f");
        store.put(&path, text.to_vec().into()).await.unwrap();
        let mut lines = Lines::open(store, &path, FileCompressionType::UNCOMPRESSED).await.unwrap();
        let mut blocks = vec![];
        while let Some(block) = lines.next().await.unwrap() {
            blocks.push((block.first_line, String::from_utf8(block.text).unwrap()));
        }
        blocks
    }

    #[tokio::test]
    async fn every_line_is_whole_and_ends_with_a_line_feed() {
        assert_eq!(blocks(b"a\nb").await, [(1, "a\nb\n".to_owned())]);
        assert_eq!(blocks(b"\xef\xbb\xbfa\n").await, [(1, "a\n".to_owned())]);
        assert!(blocks(b"").await.is_empty());
        let line = "x".repeat(99) + "\n";
        let text = line.repeat(30_000);
        let found = blocks(text.as_bytes()).await;
        assert!(found.len() > 1);
        let mut next_line = 1;
        for (first_line, block) in &found {
            assert_eq!(*first_line, next_line);
            assert!(block.ends_with('\n'));
            next_line += count_lines(block.as_bytes());
        }
        assert_eq!(next_line, 30_001);
        let long = "y".repeat(BLOCK_BYTES * 2 + 7);
        assert_eq!(blocks(long.as_bytes()).await, [(1, long + "\n")]);
    }

    #[test]
    fn halving_ends_at_single_lines() {
        assert_eq!(halves(b"a\n"), None);
        assert_eq!(halves(b"a\nb\n"), Some((&b"a\n"[..], &b"b\n"[..])));
        assert_eq!(halves(b"\nlong line\n"), Some((&b"\n"[..], &b"long line\n"[..])));
        assert_eq!(halves(b"long line\n\n"), Some((&b"long line\n"[..], &b"\n"[..])));
    }
}
