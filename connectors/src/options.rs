//! Options by name, as SQL and command lines give them.
//!
//! A connector says which names it knows. Names are matched without regard to case, as Spark does; one that is unknown is
//! an error that names the nearest known ones, because an option that is silently ignored is found much later.

use std::collections::BTreeMap;

use tidewater::error::{Error, Result};
use tidewater::interval::Interval;

/// The options given to one source or sink, all of them known to it.
///
/// ```
/// use tidewater_connectors::options::Options;
///
/// let given = [("MaxFilesPerTrigger".to_owned(), "5".to_owned())];
/// let options = Options::new("the file source", &["maxFilesPerTrigger", "latestFirst"], given)?;
/// assert_eq!(options.positive_u64("maxFilesPerTrigger")?, Some(5));
/// assert!(!options.bool("latestFirst", false)?);
/// # Ok::<(), tidewater::error::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    what: String,
    /// By lower-case name.
    given: BTreeMap<String, String>,
}

impl Options {
    /// Takes what was `given` to `what` ("the file source", say), which understands the `known` names and no others. If a
    /// name is given twice, the later value wins.
    pub fn new(what: &str, known: &[&str], given: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let mut options = Options { what: what.to_owned(), given: BTreeMap::new() };
        for (name, value) in given {
            if !known.iter().any(|k| k.eq_ignore_ascii_case(&name)) {
                return Err(Error::unknown("option", &name, what, known));
            }
            options.given.insert(name.to_ascii_lowercase(), value);
        }
        Ok(options)
    }

    /// The value of `name`, if it was given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.given.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    /// A whole number of at least one.
    pub fn positive_u64(&self, name: &str) -> Result<Option<u64>> {
        self.parsed(name, "a whole number of at least 1", |value| value.trim().parse().ok().filter(|n| *n > 0))
    }

    /// `true` or `false`; `default` if it was not given.
    pub fn bool(&self, name: &str, default: bool) -> Result<bool> {
        let given = self.parsed(name, "`true` or `false`", |value| value.trim().to_ascii_lowercase().parse().ok())?;
        Ok(given.unwrap_or(default))
    }

    /// A length of time such as `10 seconds`, in milliseconds; never negative.
    pub fn interval_ms(&self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        Interval::from(value).non_negative_ms(&format!("option `{name}` of {}", self.what)).map(Some)
    }

    /// The value of `name` as `parse` reads it, or an error that says what was `wanted`.
    pub fn parsed<T>(&self, name: &str, wanted: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match parse(value) {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(Error::invalid(format!("option `{name}` of {} is `{value}`, not {wanted}", self.what))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &[(&str, &str)]) -> Result<Options> {
        let given = given.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        Options::new("the test source", &["maxFilesPerTrigger", "maxFileAge", "latestFirst"], given)
    }

    #[test]
    fn names_are_found_in_any_case() {
        let options =
            options(&[("MAXFILESPERTRIGGER", "3"), ("latestfirst", "TRUE"), ("maxFileAge", "7 days")]).unwrap();
        assert_eq!(options.positive_u64("maxFilesPerTrigger").unwrap(), Some(3));
        assert!(options.bool("latestFirst", false).unwrap());
        assert_eq!(options.interval_ms("maxFileAge").unwrap(), Some(7 * 24 * 3600 * 1000));
        assert_eq!(options.get("nothing"), None);
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_near_ones() {
        let error = options(&[("maxFilePerTriger", "3")]).unwrap_err();
        assert!(error.message().contains("unknown option `maxFilePerTriger` of the test source"), "{error}");
        assert!(error.message().contains("did you mean `maxFilesPerTrigger`"), "{error}");
        assert!(error.hint().unwrap().contains("latestFirst"), "{error}");
    }

    #[test]
    fn a_name_like_no_other_gets_no_guess() {
        let error = options(&[("zzz", "3")]).unwrap_err();
        assert!(!error.message().contains("did you mean"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (name, value) in [("maxFilesPerTrigger", "0"), ("maxFileAge", "-1 day"), ("latestFirst", "maybe")] {
            let options = options(&[(name, value)]).unwrap();
            let error = match name {
                "maxFilesPerTrigger" => options.positive_u64(name).unwrap_err(),
                "maxFileAge" => options.interval_ms(name).unwrap_err(),
                _ => options.bool(name, false).unwrap_err(),
            };
            assert!(error.message().contains(name) && error.message().contains(value), "{error}");
        }
    }
}
