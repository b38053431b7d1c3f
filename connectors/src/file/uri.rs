//! How files are named: a store and a path for us, a URI in the logs.
//!
//! Logs hold full URIs spelled as Java spells them, because Spark compares them as text: a local file is
//! `file:///a/b.csv` (three slashes), `%` and whatever is illegal in a URI is percent-encoded, letters beyond ASCII are not.
//!
//! A local name may hold what no path of an object store may (a tab, bytes that are not UTF-8, an ending such as `#1`):
//! such a file is opened by its own name, see [`OddFile`].

use std::path::PathBuf;
use std::sync::Arc;

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::ObjectStore;
use object_store::path::{Path, PathPart};
use percent_encoding::{percent_decode_str, percent_encode_byte};
use tidewater::error::{Error, Result};
use tidewater::internal::local_path;

use super::odd_file::{OddFile, os_name};

/// Where a file lies: in which object store, and under which path there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileLocation {
    pub(super) store: ObjectStoreUrl,
    /// For a name that no object store takes, something like it.
    pub(super) path: Path,
    /// The names that lead to such a file, as they are.
    odd: Option<Vec<Vec<u8>>>,
}

impl FileLocation {
    /// Reads a URI of a log. `file:/a`, as some tools print it, is the same as `file:///a`.
    pub(super) fn parse(uri: &str) -> Result<Self> {
        let wrong = |why: String| {
            Error::damaged(format!("`{uri}` is not the URI of a file: {why}"))
                .with_hint("the log was written or changed by something else: restore it from a backup")
        };
        let (scheme, rest) = uri.split_once(':').ok_or_else(|| wrong("it has no scheme".to_owned()))?;
        let (authority, path) = match rest.strip_prefix("//") {
            Some(rest) => rest.split_once('/').ok_or_else(|| wrong("it has no path".to_owned()))?,
            None => ("", rest),
        };
        let store = ObjectStoreUrl::parse(format!("{scheme}://{authority}")).map_err(|e| wrong(e.to_string()))?;
        let bytes: Vec<u8> = percent_decode_str(path).collect();
        let names = bytes.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).map(<[u8]>::to_vec);
        let location = Self::from_names(store, names.collect());
        if location.odd.is_some() && location.store != ObjectStoreUrl::local_filesystem() {
            return Err(wrong("no object store takes this name".to_owned()));
        }
        Ok(location)
    }

    /// The place that these names lead to, from the root of the store.
    pub(super) fn from_names(store: ObjectStoreUrl, names: Vec<Vec<u8>>) -> Self {
        let is_local = store == ObjectStoreUrl::local_filesystem();
        let is_odd = |name: &Vec<u8>| plain_part(name).is_none_or(|_| is_local && ends_like_an_upload(name));
        let path =
            Path::from_iter(names.iter().map(|name| plain_part(name).unwrap_or(PathPart::from(name.as_slice()))));
        let odd = names.iter().any(is_odd).then_some(names);
        FileLocation { store, path, odd }
    }

    /// The names that lead there, from the root of the store.
    pub(super) fn names(&self) -> Vec<Vec<u8>> {
        match &self.odd {
            Some(names) => names.clone(),
            None => self.path.parts().map(|part| part.as_ref().as_bytes().to_vec()).collect(),
        }
    }

    /// The path on a local disk, if it is one.
    pub(super) fn on_disk(&self) -> Option<PathBuf> {
        if self.store != ObjectStoreUrl::local_filesystem() {
            return None;
        }
        let mut path = PathBuf::from("/");
        for name in self.names() {
            path.push(os_name(&name)?);
        }
        Some(path)
    }

    /// True if no object store takes the name as it is.
    pub(super) fn is_odd(&self) -> bool {
        self.odd.is_some()
    }

    /// The URI as logs spell it.
    pub(super) fn uri(&self) -> String {
        match &self.odd {
            Some(names) => uri_of_bytes(&self.store, &names.join(&b'/')),
            None => uri_of(&self.store, self.path.as_ref()),
        }
    }

    /// The store, if the session knows it.
    pub(super) fn open(&self, runtime: &RuntimeEnv) -> Result<Arc<dyn ObjectStore>> {
        match &self.odd {
            Some(_) => match self.on_disk() {
                Some(path) => Ok(Arc::new(OddFile::new(path))),
                None => Err(Error::invalid("this system has no names that are not UTF-8").with_file(self.uri())),
            },
            None => object_store(&self.store, runtime),
        }
    }
}

/// `name` as an object store takes it, if it does.
fn plain_part(name: &[u8]) -> Option<PathPart<'_>> {
    std::str::from_utf8(name).ok().and_then(|name| PathPart::parse(name).ok())
}

/// The store of local files takes `name#1` for an upload of its own that is not finished.
fn ends_like_an_upload(name: &[u8]) -> bool {
    let mut parts = name.splitn(2, |byte| *byte == b'#').skip(1);
    parts.next().is_some_and(|end| !end.is_empty() && end.iter().all(u8::is_ascii_digit))
}

/// The object store of `url`, if the session knows it.
pub(super) fn object_store(url: &ObjectStoreUrl, runtime: &RuntimeEnv) -> Result<Arc<dyn ObjectStore>> {
    runtime.object_store(url).map_err(|e| {
        Error::invalid(format!("no object store is registered for `{url}`"))
            .with_hint("call `ctx.register_object_store(url, store)` before the query starts")
            .with_source(e)
    })
}

/// The URI of `path` (not encoded, without a leading slash) in `store`.
pub(super) fn uri_of(store: &ObjectStoreUrl, path: &str) -> String {
    uri_of_bytes(store, path.as_bytes())
}

fn uri_of_bytes(store: &ObjectStoreUrl, path: &[u8]) -> String {
    let mut uri = store.as_str().trim_end_matches('/').to_owned();
    // `file://` loses its slashes above.
    if uri == "file:" {
        uri.push_str("//");
    }
    uri.push('/');
    let encode = |uri: &mut String, bytes: &[u8]| bytes.iter().for_each(|b| uri.push_str(percent_encode_byte(*b)));
    for chunk in path.utf8_chunks() {
        for c in chunk.valid().chars() {
            if is_legal(c) {
                uri.push(c);
            } else {
                encode(&mut uri, c.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
        encode(&mut uri, chunk.invalid());
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

/// The store of `location` and the names that lead to it.
pub(super) fn split(location: &str) -> Result<(ObjectStoreUrl, Vec<String>)> {
    let wrong = |why: String| Error::invalid(format!("`{location}` is neither a path nor a URL: {why}"));
    let (store, path) = match (local_path(location)?, location.split_once("://")) {
        (Some(path), _) => {
            let path = path.into_os_string().into_string().map_err(|_| wrong("it is not UTF-8".to_owned()))?;
            (ObjectStoreUrl::local_filesystem(), path)
        }
        (None, None) => return Err(wrong("it has no store".to_owned())),
        (None, Some((scheme, rest))) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let store = ObjectStoreUrl::parse(format!("{scheme}://{authority}")).map_err(|e| wrong(e.to_string()))?;
            (store, percent_decode_str(path).decode_utf8().map_err(|e| wrong(e.to_string()))?.into_owned())
        }
    };
    let mut names: Vec<String> = vec![];
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name.to_owned()),
        }
    }
    Ok((store, names))
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
    fn names_that_no_object_store_takes_come_back_as_they_are() {
        let local = ObjectStoreUrl::local_filesystem();
        for (name, uri) in [
            (&b"report.csv#1"[..], "file:///in/report.csv%231"),
            (b"a\tb.csv", "file:///in/a%09b.csv"),
            (b"caf\xe9.csv", "file:///in/caf%E9.csv"),
            (b"100%41\n.csv", "file:///in/100%2541%0A.csv"),
        ] {
            let location = FileLocation::from_names(local.clone(), vec![b"in".to_vec(), name.to_vec()]);
            assert!(location.is_odd(), "{uri}");
            assert_eq!(location.uri(), uri);
            let back = FileLocation::parse(uri).unwrap();
            assert_eq!(back, location);
            assert_eq!(back.names(), [b"in", name]);
        }
        for name in ["report#1.csv", "a%09b", "x#", "#x", "ü~.csv"] {
            assert!(!FileLocation::from_names(local.clone(), vec![name.as_bytes().to_vec()]).is_odd(), "{name}");
        }
        let bucket = ObjectStoreUrl::parse("s3://bucket").unwrap();
        assert!(!FileLocation::from_names(bucket, vec![b"report.csv#1".to_vec()]).is_odd());
        assert!(FileLocation::parse("s3://bucket/a%09b").is_err());
    }

    #[test]
    fn a_single_slash_is_read_and_nonsense_is_not() {
        let location = FileLocation::parse("file:/a/b.csv").unwrap();
        assert_eq!(location.uri(), "file:///a/b.csv");
        assert!(FileLocation::parse("a/b.csv").is_err());
    }
}
