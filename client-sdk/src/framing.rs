//! Counts gRPC messages as their bytes pass by. Copies nothing, understands nothing of what is in them.

/// Counts messages by their five-byte prefixes, however the bytes are cut into frames.
#[derive(Debug, Default)]
pub(crate) struct MessageCounter {
    started: u64,
    /// Bytes of the current message still to come.
    left: u64,
    /// Of the next prefix: how many bytes have come, and the length they spell so far.
    prefix_bytes: u8,
    length: u32,
}

const PREFIX_BYTES: u8 = 5;

impl MessageCounter {
    /// Messages of which at least the whole prefix has passed.
    pub(crate) fn started(&self) -> u64 {
        self.started
    }

    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skip = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= skip as u64;
                bytes = &bytes[skip..];
                continue;
            }
            // The first byte of a prefix is the compression flag, the others are the length.
            if self.prefix_bytes > 0 {
                self.length = (self.length << 8) | u32::from(bytes[0]);
            }
            self.prefix_bytes += 1;
            bytes = &bytes[1..];
            if self.prefix_bytes == PREFIX_BYTES {
                self.started += 1;
                self.left = u64::from(self.length);
                self.prefix_bytes = 0;
                self.length = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        for size in [0u32, 3, 300, 0] {
            bytes.push(0);
            bytes.extend(size.to_be_bytes());
            bytes.extend(std::iter::repeat_n(0xFF, size as usize));
        }
        for cut in 1..bytes.len() {
            let mut counter = MessageCounter::default();
            bytes.chunks(cut).for_each(|chunk| counter.feed(chunk));
            assert_eq!(counter.started(), 4, "cut into {cut}");
        }
    }
}
