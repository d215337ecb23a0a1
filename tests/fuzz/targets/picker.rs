//! A picker that is told anything in any order: absurd loads, calls that end twice or never, lists and clocks that jump. It does
//! not panic, keeps the limit of calls per endpoint, and has an endpoint for every call while there is a fit one.

use std::sync::Arc;

use lookaside_sdk::picker::{Class, Fleet, Key, Keyed, Offer, Peer, Pick, Picker, Policy, Rings, Rng, Said};

const ENDPOINTS_MAX: u64 = 12;
const CALLS_MAX: usize = 256;
/// What the picker's clock can say: nine years.
const TIME_MASK: u64 = (1 << 48) - 1;

/// Runs the story that these bytes tell, to its end.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = Bytes(data.iter());
    let Some(mut story) = Story::begin(&mut bytes) else { return };
    while story.go_on(&mut bytes).is_some() {}
}

struct Bytes<'a>(std::slice::Iter<'a, u8>);

impl Bytes<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.0.next().copied()
    }

    fn below(&mut self, bound: usize) -> Option<usize> {
        usize::from(self.byte()?).checked_rem(bound)
    }

    /// Small, or anything.
    fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        if first < 0xF0 {
            return Some(first.into());
        }
        (0..first & 7).try_fold(u64::from(first), |number, _| Some((number << 8) | u64::from(self.byte()?)))
    }
}

struct Story {
    fleet: Arc<Fleet>,
    peers: Vec<Arc<Peer>>,
    picker: Picker<u64>,
    calls_max: u32,
    /// Picked and not ended, and when they were.
    calls: Vec<(Arc<Peer>, u64)>,
    now_us: u64,
    rng: Rng,
    /// An endpoint whose first call is due gets it, wherever that call was before.
    is_fresh: bool,
    next_id: u64,
}

impl Story {
    fn begin(bytes: &mut Bytes<'_>) -> Option<Self> {
        let seed = bytes.number()?;
        let fleet = Arc::new(Fleet::with_lanes(seed, bytes.below(4)?));
        let picker = Picker::new(Policy::LeastLoad, fleet.clone(), []);
        let rng = Rng::from_seed(seed);
        let (peers, calls) = (Vec::new(), Vec::new());
        let mut story =
            Self { fleet, peers, picker, calls_max: u32::MAX, calls, now_us: 1, rng, is_fresh: false, next_id: seed };
        story.list(bytes)?;
        Some(story)
    }

    /// One event. `None` at the end of the story.
    fn go_on(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        match bytes.byte()? {
            0..=79 => self.pick(bytes),
            80..=129 => self.ask(bytes),
            130..=199 => self.end(bytes),
            200..=219 => {
                let told = bytes.number()?;
                if let Some(peer) = self.peer(bytes) {
                    // Now, a while ago, or in times to come.
                    let said_us = [self.now_us, self.now_us.saturating_sub(told), self.now_us.saturating_add(told)];
                    self.picker.heard(&peer, said(told), said_us[(told % 3) as usize], self.now_us);
                }
                Some(())
            }
            220..=233 => {
                let jump = bytes.number()?;
                let ahead = self.now_us.wrapping_add(jump << (jump % 24));
                let back = self.now_us.wrapping_sub(jump);
                self.now_us = if jump % 5 == 0 { back } else { ahead } & TIME_MASK;
                Some(())
            }
            234..=238 => self.list(bytes),
            239..=243 => {
                self.fleet.set_asks(bytes.byte()? % 4 > 0);
                Some(())
            }
            244..=248 => {
                let _ = self.picker.wander(&mut self.rng);
                let _ = self.fleet.take_alarm() || self.picker.survey(self.now_us).count() > 0;
                Some(())
            }
            249..=255 => {
                let sent_us = bytes.number()?;
                if let Some(peer) = self.peer(bytes) {
                    self.picker.answered(&peer, sent_us, self.now_us);
                }
                Some(())
            }
        }
    }

    fn peer(&self, bytes: &mut Bytes<'_>) -> Option<Arc<Peer>> {
        let which = bytes.below(self.peers.len())?;
        self.peers.get(which).cloned()
    }

    fn list(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let policies = [Policy::LeastLoad, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::RingHash];
        let policy = *policies.get(bytes.below(policies.len())?)?;
        self.calls_max = match bytes.byte()? {
            0..=99 => u32::MAX,
            few => u32::from(few % 8) + 1,
        };
        let count = u64::from(bytes.byte()?) % (ENDPOINTS_MAX + 1);
        // Some stay, the others are new; ids come round to the same mark in the end.
        let kept = bytes.below(self.peers.len() + 1)?;
        self.peers.truncate(kept);
        while (self.peers.len() as u64) < count {
            self.next_id = self.next_id.wrapping_add(if self.next_id.is_multiple_of(3) { 1 << 26 } else { 1 });
            if self.peers.iter().any(|peer| peer.id() == self.next_id) {
                continue;
            }
            let peer = Arc::new(Peer::new(self.next_id));
            if bytes.byte()? > 200 {
                peer.mark_fresh();
                self.is_fresh = true;
            }
            self.peers.push(peer);
        }
        let mut offers = Vec::new();
        for peer in &self.peers {
            let (weight, capacity, standing) = (bytes.number()?, bytes.number()?, bytes.byte()?);
            offers.push(Offer {
                peer: peer.clone(),
                // The bounds of a list are the list's to keep.
                weight: u32::try_from(weight).unwrap_or(u32::MAX).min(100_000_000),
                capacity_milli: u32::try_from(capacity).unwrap_or(u32::MAX),
                priority: u32::from(standing % 3 == 0),
                ready: standing < 240,
                item: peer.id(),
            });
        }
        let keys: Vec<String> = self.peers.iter().map(|peer| peer.id().to_string()).collect();
        let keyed = offers.iter().zip(&keys).map(|(offer, key)| Keyed {
            id: offer.peer.id(),
            key,
            priority: offer.priority,
            weight: offer.weight.min(1_000),
        });
        let rings = match policy {
            Policy::RingHash => Rings::new(7, u32::from(bytes.byte()?) * 10, keyed, &Rings::default()),
            Policy::LeastLoad | Policy::WeightedRoundRobin | Policy::RoundRobin => Rings::default(),
        };
        self.picker = Picker::new(policy, self.fleet.clone(), offers).with_calls_max(self.calls_max).with_rings(&rings);
        Some(())
    }

    fn tried(&self, bytes: &mut Bytes<'_>) -> Option<Vec<u64>> {
        let mask = u64::from(bytes.byte()?);
        Some(self.peers.iter().zip(0..).filter(|(_, at)| mask >> at & 1 == 1).map(|(peer, _)| peer.id()).collect())
    }

    /// Candidates that nothing speaks against.
    fn fit(&self, tried: &[u64]) -> usize {
        let fit = |peer: &Peer| {
            peer.in_flight() < self.calls_max
                && !peer.is_aside()
                && !self.picker.is_stalled(peer, self.now_us)
                && !tried.contains(&peer.id())
        };
        self.picker.candidates().iter().filter(|candidate| fit(&candidate.peer)).count()
    }

    fn check(&self, chosen: Option<&Arc<Peer>>, fit_before: usize, tried: &[u64]) {
        let Some(chosen) = chosen else {
            assert_eq!(fit_before, 0, "a fit endpoint, and no pick");
            return;
        };
        assert!(chosen.in_flight() <= self.calls_max, "more calls than it may have");
        assert!(
            fit_before == 0 || self.is_fresh || !tried.contains(&chosen.id()),
            "tried before, though another was fit"
        );
    }

    fn begin_call(&mut self, chosen: Option<Arc<Peer>>, bytes: &mut Bytes<'_>) -> Option<()> {
        let chosen = chosen.filter(|_| self.calls.len() < CALLS_MAX);
        if let Some(peer) = chosen {
            if bytes.byte()? < 230 {
                peer.sent(self.now_us);
            }
            self.calls.push((peer, self.now_us));
        }
        Some(())
    }

    fn pick(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let tried = self.tried(bytes)?;
        let key = bytes.byte().map(|key| Key::of([key])).filter(|_| self.now_us.is_multiple_of(2));
        let fit = self.fit(&tried);
        let chosen = self.picker.pick_for(key, self.now_us, &mut self.rng, &tried).map(|chosen| chosen.peer.clone());
        self.check(chosen.as_ref(), fit, &tried);
        self.begin_call(chosen, bytes)
    }

    fn ask(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let tried = self.tried(bytes)?;
        let fit = self.fit(&tried);
        let chosen = match self.picker.pick_or_ask(None, self.now_us, &mut self.rng, &tried) {
            None => None,
            Some(Pick::Sure(chosen)) => Some(chosen.peer.clone()),
            Some(Pick::Ask([a, b])) => {
                assert!(a.peer.id() != b.peer.id(), "one is asked twice");
                let asked = [(&*a.peer, said(bytes.number()?)), (&*b.peer, said(bytes.number()?))];
                // It takes a moment.
                self.now_us = (self.now_us + 500) & TIME_MASK;
                self.picker.settle(asked, self.now_us, &mut self.rng, &tried).map(|chosen| chosen.peer.clone())
            }
        };
        self.check(chosen.as_ref(), fit, &tried);
        self.begin_call(chosen, bytes)
    }

    fn end(&mut self, bytes: &mut Bytes<'_>) -> Option<()> {
        let classes = [Class::Ok, Class::Caller, Class::Cancelled, Class::Overload, Class::Endpoint, Class::Deadline];
        let which = bytes.below(self.calls.len().max(1))?;
        let class = *classes.get(bytes.below(classes.len())?)?;
        let (told, flags) = (bytes.number()?, bytes.byte()?);
        let rif = u32::try_from(told).ok().filter(|_| flags & 1 == 1);
        if let Some((peer, sent_us)) = self.calls.get(which).cloned() {
            // Now and then one ends twice.
            if flags & 0xF0 != 0xF0 {
                self.calls.swap_remove(which);
            }
            let sent_us = Some(sent_us).filter(|_| flags & 2 == 0);
            self.picker.ended(&peer, class, sent_us, flags & 4 == 0, rif, self.now_us);
        }
        Some(())
    }
}

/// What an endpoint may say when it is asked.
fn said(number: u64) -> Said {
    match u32::try_from(number) {
        Ok(rif) if rif % 7 != 3 => Said::Rif(rif),
        Ok(rif) if rif % 2 == 0 => Said::Unwilling,
        Ok(_) | Err(_) => Said::Nothing,
    }
}
