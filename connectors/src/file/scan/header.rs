//! The header of a CSV file: which of its columns is which column of the source.
//!
//! Columns are found by name, so a file may have them in another order, have more, or lack some. Only where a header has
//! names that nobody declared *and* lacks some that were declared does nobody know: a column may have been renamed.

use tidewater::error::{Error, ErrorKind, Result};

use crate::file::names::Names;

/// Where the columns of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// For every column of the file: its place among the declared ones, if it was declared.
    pub(super) columns: Vec<Option<usize>>,
    /// The declared columns that the file lacks.
    pub(super) lacks: Vec<usize>,
}

impl Header {
    /// Compares the `found` names with the `declared` ones.
    pub(super) fn compare(found: &[String], declared: &[&str], names: Names) -> Result<Self> {
        let refused = |why: String| {
            Error::new(ErrorKind::BadInput, format!("the header of the file does not fit the columns of the source: {why}")).with_hint(
                "correct the header, or declare the columns under the names it has; or set the option `enforceSchema` to `true` to \
                 take columns by their position, whatever the header says",
            )
        };
        let mut lacks = vec![];
        let mut columns = vec![None; found.len()];
        for (place, name) in declared.iter().enumerate() {
            match names.find(found.iter().map(String::as_str), name).map_err(&refused)? {
                Some(at) => {
                    if let Some(column) = columns.get_mut(at) {
                        *column = Some(place);
                    }
                }
                None => lacks.push(place),
            }
        }
        let unknown: Vec<&str> =
            found.iter().zip(&columns).filter(|(_, place)| place.is_none()).map(|(name, _)| name.as_str()).collect();
        if !lacks.is_empty() && !unknown.is_empty() {
            let lacking: Vec<&str> = lacks.iter().filter_map(|place| declared.get(*place).copied()).collect();
            return Err(refused(format!("it has `{}`, and lacks `{}`", unknown.join("`, `"), lacking.join("`, `"))));
        }
        Ok(Header { columns, lacks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(found: &str, declared: &str) -> Result<Header> {
        let found: Vec<String> = found.split(',').map(str::to_owned).collect();
        let declared: Vec<&str> = declared.split(',').collect();
        Header::compare(&found, &declared, Names { case_sensitive: false })
    }

    #[test]
    fn columns_are_found_by_name_or_refused() {
        let header =
            |columns: &[Option<usize>], lacks: &[usize]| Header { columns: columns.into(), lacks: lacks.into() };
        assert_eq!(compare("K,v", "k,v").unwrap(), header(&[Some(0), Some(1)], &[]));
        assert_eq!(compare("v,k", "k,v").unwrap(), header(&[Some(1), Some(0)], &[]));
        assert_eq!(compare("v,new,k", "k,v").unwrap(), header(&[Some(1), None, Some(0)], &[]));
        assert_eq!(compare("v", "k,v").unwrap(), header(&[Some(1)], &[0]));
        let error = compare("k,value", "k,v").unwrap_err();
        assert!(error.message().contains("it has `value`, and lacks `v`"), "{error}");
        let error = compare("k,V,v", "k,v").unwrap_err();
        assert!(error.message().contains("`v` may mean `V` or `v`"), "{error}");
    }
}
