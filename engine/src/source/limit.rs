//! How much one batch may take.

/// How much of a source one batch may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadLimit {
    /// What the source's own options say (`maxFilesPerTrigger`, say); without such options, everything.
    Configured,
    /// Everything there is, whatever the options say: [`Trigger::Once`](crate::trigger::Trigger::Once) asks for it.
    All,
}
