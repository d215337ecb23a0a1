//! One hash for digests, subsets and tie-breaks. Replicas must agree on it for ever, which rules out the hashers of the
//! standard library, whose output may change between releases.

/// FNV-1a (Fowler, Noll, Vo) over bytes, with a final mix (the finaliser of SplitMix64, Steele et al. 2014) since FNV
/// alone spreads short inputs badly over the high bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hasher(u64);

impl Hasher {
    pub(crate) fn new(seed: u64) -> Self {
        let mut hasher = Self(0xcbf2_9ce4_8422_2325);
        hasher.number(seed);
        hasher
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A string with its length, so that ("ab", "c") and ("a", "bc") differ.
    pub(crate) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }

    pub(crate) fn number(&mut self, number: u64) {
        self.bytes(&number.to_le_bytes());
    }

    pub(crate) fn finish(self) -> u64 {
        let mut z = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// The hash of one text under a seed.
pub(crate) fn text(seed: u64, text: &str) -> u64 {
    let mut hasher = Hasher::new(seed);
    hasher.text(text);
    hasher.finish()
}

/// The hash of one number.
pub(crate) fn number(number: u64) -> u64 {
    let mut hasher = Hasher::new(0);
    hasher.number(number);
    hasher.finish()
}
