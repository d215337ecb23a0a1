//! Which balancer to ask next. Clients begin at different ones, so that no replica gets them all; each keeps to the one that
//! answers; each balancer that failed has a back-off of its own, and the others are not kept waiting by it.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::BALANCER_AGAIN;
use crate::{
    backoff::{self, Backoff, RECONNECT_LONGEST},
    picker::Rng,
    resolve::{self, Name, Place},
    target,
};

/// Redirects followed in a row before waiting like after a failure: two balancers may point at each other.
const REDIRECTS_MAX: u32 = 5;
/// Balancers named by one redirect that are considered.
const REDIRECTED_TO_MAX: usize = 16;
/// Balancers considered, all names together; further addresses are left out.
const KNOWN_MAX: usize = 256;
/// How long an answer of the name service is waited for; the last one serves meanwhile.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(1);

/// Balancers that no channel of this process could reach lately: the others ask elsewhere first. It is an order of
/// preference and nothing else; every channel has its own back-off.
static UNREACHABLE: Mutex<BTreeMap<SocketAddr, Instant>> = Mutex::new(BTreeMap::new());
/// How long such word holds, and of how many balancers; beyond that all of it is forgotten.
const UNREACHABLE_FOR: Duration = RECONNECT_LONGEST;
const UNREACHABLE_MAX: usize = 1_024;

/// Why a balancer did not help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: String,
    /// Nothing answered at all, which concerns every channel of this process.
    pub(super) unreachable: bool,
    /// When it wants to be asked again.
    pub(super) pushback: Option<Duration>,
}

impl Refusal {
    pub(super) fn unreachable(reason: String) -> Self {
        Self { reason, unreachable: true, pushback: None }
    }

    /// It answered, and then nothing came of it.
    pub(super) fn of_stream(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), unreachable: false, pushback: None }
    }
}

/// It failed at this moment, and is not asked again before that.
#[derive(Debug)]
struct Failed {
    at: Instant,
    not_before: Instant,
}

#[derive(Debug)]
struct Known {
    place: Place,
    backoff: Backoff,
    failed: Option<Failed>,
    under_way: bool,
}

impl Known {
    fn fail(&mut self, now: Instant, pause_min: Duration) {
        self.failed = Some(Failed { at: now, not_before: now + self.backoff.next().max(pause_min) });
    }
}

#[derive(Debug)]
pub(super) struct Plan {
    names: Vec<Name>,
    /// In an order of this channel's own.
    known: Vec<Known>,
    /// To be asked first, once each.
    redirected: Vec<Place>,
    redirects: u32,
    rng: Rng,
}

impl Plan {
    pub(super) fn new(balancers: &[String], rng: Rng) -> Self {
        let names = balancers.iter().map(|balancer| Name::new(balancer)).collect();
        let mut plan = Self { names, known: Vec::new(), redirected: Vec::new(), redirects: 0, rng };
        plan.take_places();
        plan
    }

    /// Asks the name service again where the balancers are.
    pub(super) async fn resolve(&mut self) {
        if self.names.iter().any(Name::may_change) {
            resolve::refresh(&mut self.names, Instant::now() + RESOLVE_PATIENCE).await;
            self.take_places();
        }
    }

    fn take_places(&mut self) {
        let mut places: Vec<Place> = self.names.iter().flat_map(Name::places).collect();
        self.known.retain(|known| places.contains(&known.place));
        places.retain(|place| self.known.iter().all(|known| known.place.address != place.address));
        for place in places {
            if self.known.len() >= KNOWN_MAX || self.known.iter().any(|known| known.place.address == place.address) {
                continue;
            }
            let backoff = Backoff::new(BALANCER_AGAIN, RECONNECT_LONGEST, self.rng.next_u64());
            let anywhere = self.rng.below(self.known.len() as u64 + 1) as usize;
            self.known.insert(anywhere, Known { place, backoff, failed: None, under_way: false });
        }
    }

    /// Whom to ask now; `None` when everybody is being asked or has failed lately. Those that never failed come first,
    /// and then whoever failed the longest ago.
    pub(super) fn next(&mut self, now: Instant) -> Option<Place> {
        if let Some(place) = self.redirected.pop() {
            return Some(place);
        }
        let due = |known: &&mut Known| {
            !known.under_way && known.failed.as_ref().is_none_or(|failed| failed.not_before <= now)
        };
        let next = self.known.iter_mut().filter(due).min_by_key(|known| {
            let failed_at = known.failed.as_ref().map(|failed| failed.at);
            (failed_at.is_some(), is_unreachable(known.place.address, now), failed_at)
        })?;
        next.under_way = true;
        Some(next.place.clone())
    }

    /// When somebody may be asked; `None` when only those that are being asked are left, or nobody is known.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let waiting = self.known.iter().filter(|known| !known.under_way);
        waiting.map(|known| known.failed.as_ref().map_or(now, |failed| failed.not_before)).min()
    }

    /// Whether there is anybody to ask but this one.
    pub(super) fn knows_others(&self, place: &Place) -> bool {
        self.known.iter().any(|known| known.place.address != place.address)
    }

    /// Why nobody is known, where that is so.
    pub(super) fn trouble(&self) -> Option<String> {
        let troubles: Vec<&str> = self.names.iter().map(Name::trouble).filter(|trouble| !trouble.is_empty()).collect();
        self.known.is_empty().then(|| troubles.join("; "))
    }

    /// It answered, before all others that are being asked: those are asked no more, and count as slow.
    pub(super) fn reached(&mut self, place: &Place, now: Instant) {
        unreachable_lately().remove(&place.address);
        for known in &mut self.known {
            if known.place.address == place.address {
                known.failed = None;
            } else if known.under_way {
                known.fail(now, Duration::ZERO);
            }
            known.under_way = false;
        }
    }

    /// It has been of use for long enough to start its back-off anew.
    pub(super) fn proved(&mut self, place: &Place) {
        self.redirects = 0;
        if let Some(known) = self.find(place) {
            known.backoff.reset();
        }
    }

    /// It is of no use now.
    pub(super) fn failed(&mut self, place: &Place, refusal: &Refusal, now: Instant) {
        if refusal.unreachable {
            let mut lately = unreachable_lately();
            if lately.len() >= UNREACHABLE_MAX {
                lately.clear();
            }
            lately.insert(place.address, now);
        }
        let asked_for = refusal.pushback.map(|pushback| backoff::spread(pushback, &mut self.rng));
        if let Some(known) = self.find(place) {
            known.under_way = false;
            known.fail(now, asked_for.unwrap_or_default());
        }
    }

    fn find(&mut self, place: &Place) -> Option<&mut Known> {
        self.known.iter_mut().find(|known| known.place.address == place.address)
    }

    /// Asks these next, or any other known one when none is named. False when it is time to wait instead.
    pub(super) async fn redirect(&mut self, from: &Place, to: &[String], now: Instant) -> bool {
        self.redirects += 1;
        self.failed(from, &Refusal::of_stream(""), now);
        self.redirected.clear();
        if self.redirects > REDIRECTS_MAX {
            self.redirects = 0;
            return false;
        }
        let sound = to.iter().take(REDIRECTED_TO_MAX).filter_map(|text| target::address(text).ok());
        let mut names: Vec<Name> = sound.map(|text| Name::new(&text)).collect();
        resolve::refresh(&mut names, now + RESOLVE_PATIENCE).await;
        // Popped from the end: the first one named is the first one asked.
        self.redirected = names.iter().flat_map(Name::places).take(REDIRECTED_TO_MAX).collect();
        self.redirected.reverse();
        !self.redirected.is_empty() || self.known.iter().any(|known| known.failed.is_none())
    }
}

fn unreachable_lately() -> std::sync::MutexGuard<'static, BTreeMap<SocketAddr, Instant>> {
    UNREACHABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_unreachable(address: SocketAddr, now: Instant) -> bool {
    unreachable_lately().get(&address).is_some_and(|at| now.saturating_duration_since(*at) < UNREACHABLE_FOR)
}

#[cfg(test)]
mod tests;
