//! Encoded keys, one after the other.

/// Keys of equal length, as those of numbers are, need no word on where each ends.
#[derive(Debug, Default)]
pub(super) struct Keys {
    bytes: Vec<u8>,
    count: usize,
    /// The length of each, as long as all have the same.
    length: usize,
    /// Where each ends; empty as long as all have the same length.
    ends: Vec<u32>,
}

impl Keys {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Keys { bytes: Vec::with_capacity(bytes), ..Keys::default() }
    }

    pub(super) fn push(&mut self, key: &[u8]) {
        if self.count == 0 {
            self.length = key.len();
        } else if self.ends.is_empty() && key.len() != self.length {
            // A chunk has more than one key only while its bytes are few.
            self.ends = (1..=self.count).map(|number| (number * self.length) as u32).collect();
        }
        self.bytes.extend_from_slice(key);
        self.count += 1;
        if !self.ends.is_empty() {
            self.ends.push(self.bytes.len() as u32);
        }
    }

    /// The key of a row.
    pub(super) fn get(&self, row: usize) -> &[u8] {
        let (start, end) = if self.ends.is_empty() {
            (row * self.length, (row + 1) * self.length)
        } else {
            let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
            (start as usize, self.ends[row] as usize)
        };
        &self.bytes[start..end]
    }

    pub(super) fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// Memory held, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back_whatever_their_lengths() {
        for all in [&["ab", "cd", "ef"][..], &["ab", "c", "", "def"], &["", "", "x"], &["x", ""]] {
            let mut keys = Keys::default();
            all.iter().for_each(|key| keys.push(key.as_bytes()));
            let found: Vec<&[u8]> = (0..all.len()).map(|row| keys.get(row)).collect();
            assert_eq!(found, all.iter().map(|key| key.as_bytes()).collect::<Vec<_>>());
        }
    }
}
