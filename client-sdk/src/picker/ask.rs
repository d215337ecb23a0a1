//! Asking endpoints how loaded they are, for clients that call too rarely to have heard anything fresh: two are drawn by share and
//! asked on the connections that there are, and the call goes to the one with less to do (the power of two choices, Mitzenmacher
//! 2001, with fresh answers). What the other one says is banked, so that nothing that was heard is lost.

use super::{
    Candidate, FULL_AGAIN_MAX, Key, Peer, Picker, Rng,
    choice::{Choice, is_below, is_lighter, load_with},
    tokens::Mark,
};

/// One pick in so many asks an endpoint on the side: one that is idle has no responses that could tell of it.
pub const WANDER_PICKS: u64 = 256;

/// What comes of a pick that may ask.
#[derive(Debug)]
pub enum Pick<'a, T> {
    /// This endpoint; the call counts as in flight there.
    Sure(&'a Candidate<T>),
    /// Nothing fresh is known: ask both for their requests in flight, then [`Picker::settle`]. Nothing is counted yet.
    Ask([&'a Candidate<T>; 2]),
}

/// What came of asking an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    /// So many requests are in flight there.
    Rif(u32),
    /// It wants no call: it leaves, or has too much to do.
    Unwilling,
    /// Nothing, in time.
    Nothing,
    /// It could not be asked.
    Unasked,
}

impl Said {
    fn rif(self) -> Option<u32> {
        match self {
            Self::Rif(rif) => Some(rif),
            Self::Unwilling | Self::Nothing | Self::Unasked => None,
        }
    }
}

impl<T> Picker<T> {
    /// As [`Picker::pick_for`], but where nothing fresh is known it may name two endpoints to be asked. Only where endpoints can
    /// be asked ([`super::Fleet::set_asks`]).
    pub fn pick_or_ask(&self, key: Option<Key>, now_us: u64, rng: &mut Rng, tried: &[u64]) -> Option<Pick<'_, T>> {
        for _ in 0..FULL_AGAIN_MAX {
            match self.choose(key, now_us, rng, tried, true)? {
                Choice::One(chosen) if self.begin(chosen) => return Some(Pick::Sure(chosen)),
                Choice::One(_) => {}
                Choice::Two(pair) => return Some(Pick::Ask(pair)),
            }
        }
        None
    }

    /// Chooses between two that were asked, by what they said. Counts the call as in flight there.
    pub fn settle(
        &self,
        asked: [(&Peer, Said); 2],
        now_us: u64,
        rng: &mut Rng,
        tried: &[u64],
    ) -> Option<&Candidate<T>> {
        // What they are may have changed while they were asked: only those that this picker knows are chosen.
        let known = asked.map(|(peer, said)| Some((self.find(Mark::of(peer.id()))?, said)));
        for (candidate, said) in known.into_iter().flatten() {
            self.heard(&candidate.peer, said, now_us, now_us);
        }
        let lane = self.fleet.lane();
        // To have been asked is no merit: of one that could not be the usual is taken, or what it told last.
        let seems_below = |unasked: &Candidate<T>, said: Said, rif: u32, asked: &Candidate<T>| {
            let told = unasked.peer.told(now_us, self.fleet.token_age_us());
            let expected = told.unwrap_or_else(|| self.rif_expected(unasked)).max(unasked.peer.load(now_us));
            said == Said::Unasked
                && self.may_speak_for_itself(unasked, lane, now_us, tried)
                && is_below(load_with(expected), unasked, load_with(rif.into()), asked)
        };
        let speaks = |candidate: &Candidate<T>| self.is_credible(candidate, lane, now_us, tried);
        // Who wants no call is worse than who said nothing.
        let chosen = match known.map(|known| known.filter(|(_, said)| *said != Said::Unwilling)) {
            [Some((a, said_a)), Some((b, said_b))] => {
                match (said_a.rif().filter(|_| speaks(a)), said_b.rif().filter(|_| speaks(b))) {
                    (Some(rif_a), Some(rif_b)) if is_below(load_with(rif_b.into()), b, load_with(rif_a.into()), a) => {
                        Some(b)
                    }
                    (Some(rif_a), None) if seems_below(b, said_b, rif_a, a) => Some(b),
                    (None, Some(rif_b)) if seems_below(a, said_a, rif_b, b) => Some(a),
                    (Some(_), Some(_) | None) => Some(a),
                    (None, Some(_)) => Some(b),
                    (None, None) => {
                        let lighter = if is_lighter(b, a, now_us) { b } else { a };
                        Some(self.not_owing(lighter, now_us, rng, tried))
                    }
                }
            }
            [Some((only, _)), None] | [None, Some((only, _))] => Some(only),
            [None, None] => None,
        };
        let chosen = chosen.filter(|chosen| !tried.contains(&chosen.peer.id()));
        match chosen.filter(|chosen| self.begin(chosen)) {
            Some(chosen) => {
                // Its own answer is used by this call.
                let told = lane.tokens(now_us, self.fleet.token_age_us()).find(|token| token.mark == chosen.mark);
                told.into_iter().for_each(|token| _ = lane.spend(token));
                Some(chosen)
            }
            None => self.pick_for(None, now_us, rng, tried),
        }
    }

    /// An endpoint said this then, as is heard now. Requests in flight are banked, for one call; what was said too long ago, such as
    /// in the head of a stream that goes on slowly, tells of another time.
    pub fn heard(&self, peer: &Peer, said: Said, said_us: u64, now_us: u64) {
        let (mark, said_us) = (Mark::of(peer.id()), said_us.min(now_us));
        let Some(candidate) = self.find(mark) else { return };
        if now_us - said_us > self.fleet.token_age_us() {
            return;
        }
        match said {
            Said::Rif(rif) => {
                self.fleet.learn_rif(u64::from(rif) * 1_000_000 / u64::from(candidate.capacity_milli));
                candidate.peer.tell(Some(rif), said_us, now_us);
                self.fleet.lane().bank(mark, rif.into(), said_us, now_us);
            }
            Said::Unwilling => candidate.peer.tell(None, said_us, now_us),
            Said::Nothing | Said::Unasked => {}
        }
    }

    /// Now and then, after a pick, an endpoint to be asked on the side; what it says goes to [`Picker::heard`].
    pub fn wander(&self, rng: &mut Rng) -> Option<&Candidate<T>> {
        let is_due = self.fleet.asks() && rng.below(WANDER_PICKS) == 0;
        if is_due { self.at(rng.below(self.share_sum)) } else { None }
    }
}
