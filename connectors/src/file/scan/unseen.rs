//! Which fields of the source no object of a JSON file has.
//!
//! Names of fields are compared as they are, as Spark does. A field that is there and null is there.

use std::sync::Arc;

use super::tally::Tally;

/// The fields that a file has not shown so far.
#[derive(Debug)]
pub(super) struct Unseen {
    /// Name, and how it is spelled in the file.
    fields: Vec<(String, Vec<u8>)>,
    has_objects: bool,
    tally: Arc<Tally>,
}

impl Unseen {
    /// All of these, at the beginning of a file.
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>, tally: Arc<Tally>) -> Self {
        let key = |name: &str| (name.to_owned(), serde_json::Value::from(name).to_string().into_bytes());
        Unseen { fields: names.map(key).collect(), has_objects: false, tally }
    }

    /// Looks through some lines of the file. Once a field was seen, it is not looked for again.
    pub(super) fn look_through(&mut self, lines: &[u8]) {
        self.has_objects |= lines.contains(&b'{');
        self.fields.retain(|(_, key)| !has_key(lines, key));
    }

    /// The file has ended.
    pub(super) fn report(&self) {
        if self.has_objects {
            self.tally.file_lacks(self.fields.iter().map(|(name, _)| name.clone()).collect());
        }
    }
}

/// Whether `key`, in its quotes, is followed by a colon somewhere.
fn has_key(lines: &[u8], key: &[u8]) -> bool {
    let mut rest = lines;
    while let Some(at) = rest.windows(key.len()).position(|window| window == key) {
        rest = rest.get(at + key.len()..).unwrap_or_default();
        if rest.trim_ascii_start().starts_with(b":") {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_seen_once_some_object_has_it() {
        let tally = Arc::new(Tally::default());
        let mut unseen = Unseen::new(["id", "v", "say \"hi\"", "gone", "text"].into_iter(), Arc::clone(&tally));
        unseen.look_through(b"{\"ID\":1,\"v\" : null,\"x\":\"text\"}\n");
        unseen.look_through(b"{\"say \\\"hi\\\"\":2}\n");
        unseen.report();
        assert_eq!(tally.columns_in_no_file(), ["gone", "id", "text"]);
        Unseen::new(["id"].into_iter(), Arc::clone(&tally)).report();
        assert_eq!(tally.columns_in_no_file().len(), 3, "a file without objects says nothing");
        let mut other = Unseen::new(["id", "gone"].into_iter(), Arc::clone(&tally));
        other.look_through(b"{\"id\":1}\n");
        other.report();
        assert_eq!(tally.columns_in_no_file(), ["gone"]);
    }
}
