//! Chance, from a seed. Same seed, same picks: a simulated day can be replayed, and no pick waits for a shared generator.

/// A small generator: a counter stepped by an odd constant, each step well mixed. Good enough to spread calls, no more.
#[derive(Debug, Clone)]
pub struct Rng(u64);

/// The odd number nearest to 2^64 divided by the golden ratio: steps of it never crowd.
pub(crate) const GOLDEN_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

impl Rng {
    /// A generator that starts at this seed; neighbouring seeds give unrelated streams.
    pub fn from_seed(seed: u64) -> Self {
        Self(mix(seed))
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let next = step(self.0, 0);
        self.0 = self.0.wrapping_add(GOLDEN_STEP);
        next
    }

    /// A number below `bound`, each about equally likely; 0 when the bound is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        scale(self.next_u64(), bound)
    }
}

/// Number `n` of the stream that begins at `base`.
pub(crate) fn step(base: u64, n: u64) -> u64 {
    mix(base.wrapping_add(GOLDEN_STEP.wrapping_mul(n.wrapping_add(1))))
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits, of some bytes: spreads them, and finds damage. Keeps nobody out who means harm.
pub(crate) fn fnv_1a(bytes: &[u8]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Spreads every bit of the input over the output.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A fraction of 2^64, as that fraction of `bound`.
pub(crate) fn scale(fraction: u64, bound: u64) -> u64 {
    ((u128::from(fraction) * u128::from(bound)) >> 64) as u64
}
