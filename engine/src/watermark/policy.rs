//! One watermark out of several.

/// How several watermarks in one query become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WatermarkPolicy {
    /// The slowest counts: no row is late because another input is ahead, but a silent input holds everything back.
    #[default]
    Min,
    /// The fastest counts: a silent input holds nothing back, but rows of the slower ones may be late.
    Max,
}

impl WatermarkPolicy {
    /// The spelling in a checkpoint.
    pub fn name(self) -> &'static str {
        match self {
            WatermarkPolicy::Min => "min",
            WatermarkPolicy::Max => "max",
        }
    }

    /// The policy of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "min" => Some(WatermarkPolicy::Min),
            "max" => Some(WatermarkPolicy::Max),
            _ => None,
        }
    }

    pub(crate) fn combine(self, watermarks_ms: impl Iterator<Item = i64>) -> Option<i64> {
        match self {
            WatermarkPolicy::Min => watermarks_ms.min(),
            WatermarkPolicy::Max => watermarks_ms.max(),
        }
    }
}
