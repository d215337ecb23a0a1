//! What calls took lately, by how many were in flight when they came: what a probe of Prequal (Wydrowski et al. 2024) answers
//! beside the number in flight.

/// Calls remembered. Prequal does not say how many; this many are a few service times of a busy endpoint.
const CALLS: usize = 32;
/// Of these, so many nearest in what they found are looked at.
const NEAREST: usize = 8;

#[derive(Debug, Default)]
pub(crate) struct Lately {
    calls: Vec<(u32, u64)>,
    next: usize,
}

impl Lately {
    /// Notes what a call took that found so many in flight.
    pub(crate) fn note(&mut self, rif: u32, latency_us: u64) {
        if self.calls.len() < CALLS {
            self.calls.push((rif, latency_us));
        } else {
            self.calls[self.next] = (rif, latency_us);
            self.next = (self.next + 1) % CALLS;
        }
    }

    /// The median of those that found about as many; 0 where there are none.
    pub(crate) fn median_near(&self, rif: u32) -> u64 {
        let mut near = self.calls.clone();
        near.sort_unstable_by_key(|(found, latency_us)| (found.abs_diff(rif), *latency_us));
        near.truncate(NEAREST);
        near.sort_unstable_by_key(|(_, latency_us)| *latency_us);
        near.get(near.len() / 2).map_or(0, |(_, latency_us)| *latency_us)
    }
}
