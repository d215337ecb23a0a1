//! What share of calls fails elsewhere, against which one endpoint is judged. Where all begin to fail together, whoever is heard
//! of most is compared with what the others fail by now, not with how they were; and no single voice says what is usual.

use std::{cmp::Reverse, collections::BTreeMap};

use super::voices::Voices;
use crate::model::Timestamp;

/// Voices that are left out in turn where it is asked what is usual: those that raise the shares of failures most. Whoever is to
/// change the median raises half of them, and few can do that at once.
const LOUDEST: usize = 8;

/// Shares of failed calls of all endpoints that are called, by how many of the newest periods they are of.
pub(super) struct Usual<'a> {
    voices: Vec<&'a Voices>,
    now: Timestamp,
    by_all: BTreeMap<u64, Told>,
    by_rest: BTreeMap<u64, Vec<Told>>,
}

/// Shares of failed calls, permille, sorted: as everybody tells them, or all but one voice.
struct Told {
    left_out: Option<u64>,
    shares: Vec<u32>,
}

impl<'a> Usual<'a> {
    /// What was told of each endpoint.
    pub(super) fn of(voices: impl Iterator<Item = &'a Voices>, now: Timestamp) -> Self {
        Self { voices: voices.collect(), now, by_all: BTreeMap::new(), by_rest: BTreeMap::new() }
    }

    /// The median of all but one endpoint, permille, whichever single voice is left out; 0 where there is no other.
    pub(super) fn failed_permille(&mut self, without: &Voices, periods: u64) -> u32 {
        let (voices, now) = (&self.voices, self.now);
        let median = |told: &Told| told.median_without(without.failed_permille_usual(told.left_out, now, periods));
        let all = self.by_all.entry(periods).or_insert_with(|| Told::of(voices, None, now, periods));
        let by_all = median(all);
        if by_all == 0 {
            // It cannot become less, and to leave out each takes long.
            return 0;
        }
        let rest = self.by_rest.entry(periods).or_insert_with(|| {
            let rest = loudest(voices, now, periods).map(|voice| Told::of(voices, Some(voice), now, periods));
            // Who alone is heard of most of them is all that there is to go by.
            rest.filter(|rest| 2 * rest.shares.len() > all.shares.len()).collect()
        });
        rest.iter().map(median).fold(by_all, u32::min)
    }
}

impl Told {
    fn of(voices: &[&Voices], left_out: Option<u64>, now: Timestamp, periods: u64) -> Self {
        let shares = voices.iter().filter_map(|voices| voices.failed_permille_usual(left_out, now, periods));
        let mut shares: Vec<u32> = shares.collect();
        shares.sort_unstable();
        Self { left_out, shares }
    }

    fn median_without(&self, own: Option<u32>) -> u32 {
        let own = own.and_then(|own| self.shares.binary_search(&own).ok()).unwrap_or(usize::MAX);
        let middle = self.shares.len().saturating_sub(1) / 2;
        self.shares.get(if middle < own { middle } else { middle + 1 }).copied().unwrap_or(0)
    }
}

/// Those voices that raise the shares of failures most.
fn loudest(voices: &[&Voices], now: Timestamp, periods: u64) -> impl Iterator<Item = u64> + use<> {
    let mut raised: BTreeMap<u64, u64> = BTreeMap::new();
    for (voice, permille) in voices.iter().flat_map(|voices| voices.accusers(now, periods)) {
        *raised.entry(voice).or_default() += u64::from(permille);
    }
    let mut loudest: Vec<(u64, u64)> = raised.into_iter().collect();
    loudest.sort_by_key(|(voice, permille)| (Reverse(*permille), *voice));
    loudest.into_iter().map(|(voice, _)| voice).take(LOUDEST)
}
