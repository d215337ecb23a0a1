//! How fit an endpoint is for the next call, by what this client has seen of it alone.

use super::{Candidate, PARDON_US, Peer, Picker, UNANSWERED_MAX, breaker::Gate};

/// How fit a candidate is, the best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    Fit,
    /// Stalled or aside, but a call is due that finds out.
    Canary,
    Stalled,
    Aside,
    /// This call was there already.
    Tried,
    /// It has as many calls as it may have: gets no further one.
    Full,
}

impl<T> Picker<T> {
    /// Whether the candidate may be taken now; a canary that is due is thereby spent.
    pub(super) fn admits(&self, candidate: &Candidate<T>, now_us: u64, tried: &[u64]) -> bool {
        match self.standing(candidate, now_us, tried) {
            Standing::Fit => true,
            Standing::Canary => {
                let is_fault_of_all_since = |since_us| self.fleet.is_fault_of_all_since(since_us);
                let peer = &candidate.peer;
                peer.take_silence_canary(now_us) || peer.breaker.take_canary(now_us, is_fault_of_all_since)
            }
            Standing::Stalled | Standing::Aside | Standing::Tried | Standing::Full => false,
        }
    }

    pub(super) fn standing(&self, candidate: &Candidate<T>, now_us: u64, tried: &[u64]) -> Standing {
        let peer = &candidate.peer;
        if peer.in_flight() >= self.calls_max {
            return Standing::Full;
        }
        if tried.contains(&peer.id()) {
            return Standing::Tried;
        }
        match peer.breaker.gate(now_us) {
            Gate::Open => {}
            Gate::CanaryDue => return Standing::Canary,
            Gate::Closed => return Standing::Aside,
        }
        if !self.is_stalled(peer, now_us) {
            return Standing::Fit;
        }
        if !peer.is_aside() {
            self.fleet.raise_alarm();
        }
        match peer.silence_gate(now_us) {
            Gate::CanaryDue => Standing::Canary,
            Gate::Open | Gate::Closed => Standing::Stalled,
        }
    }

    /// Two calls or more went there since it last said anything, the first of them long ago, and others have answered since.
    pub fn is_stalled(&self, peer: &Peer, now_us: u64) -> bool {
        let (owed, first_us) = peer.unanswered();
        owed >= UNANSWERED_MAX && self.is_silent_since(first_us, now_us, self.fleet.stall_us())
    }

    /// It owes an answer for longer than is usual, and others have answered since. A single answer is not held against it for
    /// ever: perhaps it is a call that waits for something, and only the next one can tell.
    pub(super) fn is_late(&self, peer: &Peer, now_us: u64) -> bool {
        let (owed, first_us) = peer.unanswered();
        let pardoned = owed < UNANSWERED_MAX && now_us.saturating_sub(first_us) > PARDON_US;
        owed > 0 && !pardoned && self.is_silent_since(first_us, now_us, self.fleet.late_us())
    }

    pub(super) fn is_silent_since(&self, since_us: u64, now_us: u64, for_us: u64) -> bool {
        now_us.saturating_sub(since_us) > for_us && self.fleet.spoke_after(since_us)
    }
}
