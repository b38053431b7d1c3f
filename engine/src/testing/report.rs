//! What a failing step prints.

use std::fmt;

/// Why a [`StreamTest`](super::StreamTest) failed: all steps with an arrow at the failing one, then what the query had
/// come to.
#[derive(Debug, Clone)]
pub struct Report {
    pub(super) test: String,
    pub(super) steps: Vec<String>,
    /// The step that failed, counted from 0.
    pub(super) failed: usize,
    pub(super) message: String,
    /// Title and text, in the order they are printed; empty texts are left out.
    pub(super) sections: Vec<(&'static str, String)>,
}

impl Report {
    /// What went wrong, without the rest.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: step {} failed: {}", self.test, self.failed + 1, self.message)?;
        writeln!(f, "\n== steps")?;
        for (i, step) in self.steps.iter().enumerate() {
            let arrow = if i == self.failed { "=>" } else { "  " };
            writeln!(f, "{arrow} {:>2}  {step}", i + 1)?;
        }
        for (title, text) in self.sections.iter().filter(|(_, text)| !text.is_empty()) {
            writeln!(f, "\n== {title}\n{}", text.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arrow_points_at_the_failed_step() {
        let report = Report {
            test: "late rows".into(),
            steps: vec!["process".into(), "expect new [[1]]".into()],
            failed: 1,
            message: "rows differ".into(),
            sections: vec![("offsets", "memory: 0\n".into()), ("plan", String::new())],
        };
        assert_eq!(
            report.to_string(),
            "late rows: step 2 failed: rows differ\n\n== steps\n    1  process\n=>  2  expect new [[1]]\n\n== offsets\nmemory: 0\n"
        );
    }
}
