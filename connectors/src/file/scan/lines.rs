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

/// Some lines of a file; each ends with a line feed, a carriage return, or both.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) text: Vec<u8>,
    /// The number of the first line, counted from 1.
    pub(super) first_line: u64,
    /// True if the file ends here.
    pub(super) is_last: bool,
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
                return Err(Error::new(ErrorKind::BadInput, message)
                    .with_hint(format!("{todo}, or move it away"))
                    .into());
            }
            if self.ended {
                if text.last().is_some_and(|last| *last != b'\n') {
                    text.push(b'\n');
                }
                break text.len();
            }
            // A carriage return may be half a line end, unless it is known what follows.
            let is_end = |pair: &[u8]| pair[0] == b'\n' || (pair[0] == b'\r' && pair[1] != b'\n');
            let found = text.get(searched..).and_then(|found| found.windows(2).rposition(is_end));
            if text.last() == Some(&b'\n') {
                break text.len();
            }
            if let Some(at) = found {
                break searched + at + 1;
            }
            // A line longer than a block.
            searched = text.len().saturating_sub(1);
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
        Ok(Some(Block { text, first_line, is_last: self.ended }))
    }

    /// Gives back what was not `read` of the block that came last: it comes again, with more behind it.
    pub(super) fn put_back(&mut self, block: Block, read: usize) {
        let mut text = block.text;
        text.drain(..read.min(text.len()));
        if !text.is_empty() {
            self.next_line -= count_lines(&text);
            text.append(&mut self.rest);
            self.rest = text;
        }
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

/// How many lines end.
pub(super) fn count_lines(text: &[u8]) -> u64 {
    let mut count = 0;
    let mut bytes = text.iter().peekable();
    while let Some(byte) = bytes.next() {
        count += u64::from(*byte == b'\n' || (*byte == b'\r' && bytes.peek() != Some(&&b'\n')));
    }
    count
}

/// A line without its end.
pub(super) fn trim_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
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

    #[tokio::test]
    async fn lines_may_end_with_a_carriage_return_and_be_put_back() {
        assert_eq!(blocks(b"a\rb\r\nc").await, [(1, "a\rb\r\nc\n".to_owned())]);
        let text = ("x".repeat(98) + "\r").repeat(30_000);
        let found = blocks(text.as_bytes()).await;
        assert!(found.len() > 1 && found.iter().all(|(_, block)| block.ends_with(['\r', '\n'])));
        assert_eq!(count_lines(b"a\r\nb\rc\n"), 3);

        let store = Arc::new(InMemory::new());
        let path = Path::from("f");
        store.put(&path, text.clone().into_bytes().into()).await.unwrap();
        let mut lines = Lines::open(store, &path, FileCompressionType::UNCOMPRESSED).await.unwrap();
        let first = lines.next().await.unwrap().unwrap();
        assert!(!first.is_last);
        let read = 99 * 7;
        let mut all = first.text[..read].to_vec();
        lines.put_back(first, read);
        let mut next = lines.next().await.unwrap();
        assert_eq!(next.as_ref().unwrap().first_line, 8);
        while let Some(block) = next {
            all.extend_from_slice(&block.text);
            next = lines.next().await.unwrap();
        }
        assert_eq!(all, (text + "\n").into_bytes());
    }
}
