//! How files are named: a store and a path for us, a URI in the logs.
//!
//! Logs hold full URIs spelled as Java spells them, because Spark compares them as text: a local file is
//! `file:///a/b.csv` (three slashes), `%` and whatever is illegal in a URI is percent-encoded, letters beyond ASCII are not.

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::ObjectStore;
use object_store::path::Path;
use percent_encoding::percent_decode_str;
use std::sync::Arc;
use tidewater::error::{Error, Result};

/// Where a file lies: in which object store, and under which path there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileLocation {
    pub(super) store: ObjectStoreUrl,
    pub(super) path: Path,
}

impl FileLocation {
    /// Reads a URI of a log. `file:/a`, as some tools print it, is the same as `file:///a`.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let wrong = |why: String| {
            Error::damaged(format!("`{uri}` is not the URI of a file: {why}"))
                .hint("the log was written or changed by something else: restore it from a backup")
        };
        let (scheme, rest) = uri.split_once(':').ok_or_else(|| wrong("it has no scheme".to_owned()))?;
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').ok_or_else(|| wrong("it has no path".to_owned()))?,
            None => ("", rest),
        };
        let path = percent_decode_str(path).decode_utf8().map_err(|e| wrong(e.to_string()))?;
        Ok(FileLocation {
            store: ObjectStoreUrl::parse(format!("{scheme}://{authority}")).map_err(|e| wrong(e.to_string()))?,
            path: Path::parse(path.trim_start_matches('/')).map_err(|e| wrong(e.to_string()))?,
        })
    }

    /// The URI as logs spell it.
    pub(super) fn uri(&self) -> String {
        uri_of(&self.store, self.path.as_ref())
    }

    /// The store, if the session knows it.
    pub(super) fn open(&self, runtime: &RuntimeEnv) -> Result<Arc<dyn ObjectStore>> {
        object_store(&self.store, runtime)
    }
}

/// The object store of `url`, if the session knows it.
pub(super) fn object_store(url: &ObjectStoreUrl, runtime: &RuntimeEnv) -> Result<Arc<dyn ObjectStore>> {
    runtime.object_store(url).map_err(|e| {
        Error::invalid(format!("no object store is registered for `{url}`"))
            .hint("call `ctx.register_object_store(url, store)` before the query starts")
            .caused_by(e)
    })
}

/// The URI of `path` (not encoded, without a leading slash) in `store`.
pub(super) fn uri_of(store: &ObjectStoreUrl, path: &str) -> String {
    let mut uri = store.as_str().trim_end_matches('/').to_owned();
    // `file://` loses its slashes above.
    if uri == "file:" {
        uri.push_str("//");
    }
    uri.push('/');
    for c in path.chars() {
        if is_legal(c) {
            uri.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                uri.push_str(percent_encoding::percent_encode_byte(byte));
            }
        }
    }
    uri
}

/// What Java leaves as it is in the path of a URI made from parts.
fn is_legal(c: char) -> bool {
    match c {
        'a'..='z' | 'A'..='Z' | '0'..='9' => true,
        '\0'..='\x7f' => "_-!.~'()*:@&=+$,;/".contains(c),
        _ => !c.is_control() && !c.is_whitespace(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_spelled_as_java_does() {
        let local = ObjectStoreUrl::local_filesystem();
        for (path, uri) in [
            ("data/in/f1.json", "file:///data/in/f1.json"),
            ("a b/k=x y%2Fz%3D1/f.csv", "file:///a%20b/k=x%20y%252Fz%253D1/f.csv"),
            ("ü/[1]#?.csv", "file:///ü/%5B1%5D%23%3F.csv"),
        ] {
            assert_eq!(uri_of(&local, path), uri);
            let back = FileLocation::parse(uri).unwrap();
            assert_eq!(back.uri(), uri);
            assert_eq!(back.path.as_ref(), path);
        }
        let bucket = ObjectStoreUrl::parse("s3://bucket").unwrap();
        assert_eq!(uri_of(&bucket, "in/a.json"), "s3://bucket/in/a.json");
        assert_eq!(FileLocation::parse("s3://bucket/in/a.json").unwrap().store, bucket);
    }

    #[test]
    fn a_single_slash_is_read_and_nonsense_is_not() {
        let location = FileLocation::parse("file:/a/b.csv").unwrap();
        assert_eq!(location.uri(), "file:///a/b.csv");
        assert!(FileLocation::parse("a/b.csv").is_err());
    }
}
