//! Files that are not the text their name promises, recognised by their first bytes.
//!
//! A file is decompressed by the ending of its name. One that is compressed in another way (or was renamed) is not a number
//! of malformed lines, which a parse mode may drop: it is another kind of file, and refused by name.

/// What kinds of files begin like, and what to do about one.
const KINDS: &[(&[u8], &str, &str)] = &[
    (b"\x1f\x8b\x08", "compressed with gzip", "let its name end in `.gz`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "let its name end in `.zst`"),
    (b"\xfd7zXZ\x00", "compressed with xz", "let its name end in `.xz`"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy", "decompress it, or use gzip, bzip2, xz or zstd"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "decompress it, or use gzip, bzip2, xz or zstd"),
    (b"PK\x03\x04", "a ZIP archive", "unpack it"),
    (b"\xff\xfe", "text in UTF-16", "convert it to UTF-8"),
    (b"\xfe\xff", "text in UTF-16", "convert it to UTF-8"),
    (b"Obj\x01", "an Avro file", "read such files with a source that knows them"),
];

/// What a file that begins with `start` is instead of text, and what to do.
pub(super) fn kind_of(start: &[u8]) -> Option<(&'static str, &'static str)> {
    // `BZh` alone may be the beginning of text.
    let is_bzip2 = start.starts_with(b"BZh") && start.get(4..10).is_some_and(|rest| rest == b"1AY&SY");
    if is_bzip2 {
        return Some(("compressed with bzip2", "let its name end in `.bz2`"));
    }
    let is_parquet =
        start.starts_with(b"PAR1") && start.get(4).is_some_and(|byte| *byte < b' ' && !b"\r\n\t".contains(byte));
    if is_parquet {
        return Some(("a Parquet file", "read such files with a source of Parquet files"));
    }
    KINDS.iter().find(|(magic, ..)| start.starts_with(magic)).map(|(_, what, todo)| (*what, *todo))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_text_whatever_it_begins_with() {
        for text in [&b"BZh9,1\n"[..], b"PAR1,2\n", b"PK,1\n", b"\xef\xbb\xbfa\n", b"", b"Obj,1\n", b"{}\n", b"PAR1"] {
            assert_eq!(kind_of(text), None, "{text:?}");
        }
        for (bytes, what) in [
            (&b"\x1f\x8b\x08\x00"[..], "gzip"),
            (b"BZh91AY&SY\x00", "bzip2"),
            (b"PAR1\x15\x04", "Parquet"),
            (b"\xff\xfea\x00", "UTF-16"),
        ] {
            assert!(kind_of(bytes).unwrap().0.contains(what), "{what}");
        }
    }
}
