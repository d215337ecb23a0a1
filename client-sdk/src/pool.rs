//! The endpoints of a channel's list, and which of them are kept connected. A new list, a connection made and a connection lost
//! all end in [`Pool::rebuild`], which makes the next picker; calls take whichever picker is there. It refuses to know where
//! lists come from.

mod asking;
mod keys;
mod view;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use lookaside_proto::v1::{EndpointOutcomes, MethodPolicy};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use http::request;
pub use keys::HashKey;
use keys::Keys;
pub(crate) use view::View;

use crate::{
    Tls,
    advice::Advice,
    cache::Cached,
    endpoint::{Endpoint, Link},
    list::{List, Listed},
    picker::{Fleet, Offer, Picker, Policy, Probing, Rings, Rng},
    room::Room,
    snapshot::ListSource,
};

/// Outcomes that nobody was told of for this long are no news: a balancer that comes back would take them for the present.
const OUTCOMES_AGE_MAX: Duration = Duration::from_secs(10);
/// Endpoints that left the list with something untold; beyond this the oldest words are lost.
const DEPARTED_MAX: usize = 1_000;

pub(crate) type EndpointPicker = Picker<Arc<Endpoint>>;

/// Why there is no endpoint for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPick {
    /// None is connected.
    Nobody,
    /// Those that are have as many calls in flight as they may have.
    Full,
}

impl NoPick {
    fn of(picker: &EndpointPicker) -> Self {
        if picker.candidates().is_empty() { Self::Nobody } else { Self::Full }
    }
}

#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) service: String,
    pub(crate) client_id: String,
    /// What is said of calls.
    pub(crate) advice: Advice,
    /// Where calls wait for a place at an endpoint.
    pub(crate) room: Room,
    /// When it pays to ask endpoints how loaded they are.
    pub(crate) probing: Probing,
    connect_timeout: Duration,
    me: Weak<Pool>,
    started: Instant,
    seed: AtomicU64,
    fleet: Arc<Fleet>,
    picker: ArcSwap<EndpointPicker>,
    keys: Keys,
    state: Mutex<State>,
    /// Counts pickers; a call without an endpoint waits for the next one.
    picker_made: watch::Sender<u64>,
    /// Counts lists.
    list_changed: watch::Sender<u64>,
    alarm: Notify,
    news: Notify,
}

#[derive(Debug)]
struct State {
    members: Vec<Member>,
    /// Gone from the list, with outcomes untold.
    departed: Vec<Arc<Endpoint>>,
    /// For calls with a key.
    rings: Rings,
    view: View,
    /// How endpoints are connected to.
    tls: Option<Tls>,
    next_id: u64,
    closed: bool,
    /// When outcomes were last taken, to be told.
    taken_at: Instant,
}

#[derive(Debug)]
struct Member {
    endpoint: Arc<Endpoint>,
    weight: u32,
    capacity_milli: u32,
    priority: u32,
}

impl Member {
    fn is_wanted(&self, last_tier: Option<u32>) -> bool {
        self.weight > 0 && last_tier.is_some_and(|last| self.priority <= last)
    }
}

impl Pool {
    pub(crate) fn new(service: String, client_id: String, connect_timeout: Duration, seed: u64) -> Arc<Self> {
        // A lane for each thread that may pick at the same time.
        let lanes = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let fleet = Arc::new(Fleet::with_lanes(seed, lanes));
        let none = Picker::new(Default::default(), fleet.clone(), []);
        let started = Instant::now();
        let state = State {
            members: Vec::new(),
            departed: Vec::new(),
            rings: Rings::default(),
            view: View::default(),
            tls: None,
            next_id: 0,
            closed: false,
            taken_at: started,
        };
        Arc::new_cyclic(|me| Self {
            service,
            client_id,
            advice: Advice::default(),
            room: Room::default(),
            probing: Probing::default(),
            connect_timeout,
            me: me.clone(),
            started,
            seed: AtomicU64::new(seed),
            fleet,
            picker: ArcSwap::from_pointee(none),
            keys: Keys::default(),
            state: Mutex::new(state),
            picker_made: watch::Sender::new(0),
            list_changed: watch::Sender::new(0),
            alarm: Notify::new(),
            news: Notify::new(),
        })
    }

    /// Endpoints of lists to come are connected to in this way.
    pub(crate) fn connect_over(&self, tls: Option<Tls>) {
        self.state().tls = tls;
    }

    /// Time since the pool began, microseconds: the picker's clock.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// A generator of its own for each who asks.
    pub(crate) fn rng(&self) -> Rng {
        Rng::from_seed(self.seed.fetch_add(1, Relaxed))
    }

    pub(crate) fn picker(&self) -> Arc<EndpointPicker> {
        self.picker.load_full()
    }

    /// Chooses an endpoint for a call; it counts as in flight there.
    pub(crate) fn pick(&self, head: &request::Parts, tried: &[u64]) -> Result<Arc<Endpoint>, NoPick> {
        let picker = self.picker.load();
        let mut rng = self.rng();
        let picked = picker.pick_for(self.keys.key_of(head), self.now_us(), &mut rng, tried);
        self.look_for_alarm();
        let picked = picked.ok_or_else(|| NoPick::of(&picker))?;
        self.look_around(&picker, &picked.item, &mut rng);
        Ok(picked.item.clone())
    }

    /// Chooses one beside those that a call is at; it counts as in flight there.
    pub(crate) fn pick_other(&self, head: &request::Parts, tried: &[u64]) -> Option<Arc<Endpoint>> {
        let picker = self.picker.load();
        let picked =
            picker.pick_other(self.keys.key_of(head), self.now_us(), &mut self.rng(), tried).map(|c| c.item.clone());
        self.look_for_alarm();
        picked
    }

    fn look_for_alarm(&self) {
        if self.fleet.take_alarm() {
            self.alarm();
        }
    }

    /// So many clients call the service, as a balancer knows; 0 when it does not say.
    pub(crate) fn set_clients(&self, clients: u32) {
        self.fleet.set_clients(clients.into());
    }

    /// Takes what a balancer says of calls; true when it is new. The error says why it is refused.
    pub(crate) fn take_policy(&self, policy: MethodPolicy) -> Result<bool, String> {
        let is_new = self.advice.take_policy(policy)?;
        if is_new {
            // How many calls an endpoint may have is for the picker to keep.
            self.rebuild();
        }
        Ok(is_new)
    }

    pub(crate) fn pickers(&self) -> watch::Receiver<u64> {
        self.picker_made.subscribe()
    }

    pub(crate) fn lists(&self) -> watch::Receiver<u64> {
        self.list_changed.subscribe()
    }

    /// Asks for the outcomes to be told at once.
    pub(crate) fn alarm(&self) {
        self.alarm.notify_one();
    }

    pub(crate) async fn alarmed(&self) {
        self.alarm.notified().await;
    }

    /// An endpoint is blamed for the first time since the last report: time for the next one soon.
    pub(crate) fn news(&self) {
        self.news.notify_one();
    }

    pub(crate) async fn has_news(&self) {
        self.news.notified().await;
    }

    /// Puts a list to use.
    pub(crate) fn apply(&self, list: List, source: ListSource, from: Option<String>) {
        self.apply_to(self.state(), list, source, from);
    }

    fn apply_to(&self, mut state: MutexGuard<'_, State>, list: List, source: ListSource, from: Option<String>) {
        if state.closed {
            return;
        }
        let gone = state.replace_members(&list);
        state.rings = self.keys.follow(&list, &state.members, &state.rings);
        state.view.hold(list, source, from);
        self.rebuild_with(&mut state);
        state.let_go(gone);
        drop(state);
        self.list_changed.send_modify(|n| *n += 1);
    }

    /// Holds no list any more.
    pub(crate) fn forget(&self) {
        let mut state = self.state();
        let gone = std::mem::take(&mut state.members);
        state.view.forget();
        self.rebuild_with(&mut state);
        state.let_go(gone.into_iter().map(|member| member.endpoint));
        drop(state);
        self.list_changed.send_modify(|n| *n += 1);
    }

    /// No balancer answers: the list from the disk serves, if there is one and no balancer's list is in use.
    pub(crate) fn use_cached(&self) {
        let cached = self.state().view.take_cached();
        if let Some(Cached { list, from, age }) = cached {
            let age_s = age.as_secs();
            tracing::warn!(service = self.service, age_s, "no balancer answers; using the list of the run before");
            self.apply(list, ListSource::Cache, Some(from));
            self.change_view(|view| view.is_older_by(age));
        }
    }

    /// Whether there is no balancer's list, or one that nobody can be reached of while no balancer answers.
    pub(crate) fn needs_fallback(&self) -> bool {
        self.state().needs_fallback()
    }

    /// Uses these in place of a list, or behind one, if that is still needed.
    pub(crate) fn fall_back(&self, endpoints: &[Listed]) {
        let mut state = self.state();
        if endpoints.is_empty() || !state.needs_fallback() {
            return;
        }
        let (view, is_a_balancers) = (&state.view, state.view.is_a_balancers());
        let list = match &view.list {
            Some(held) if is_a_balancers => held.with_spares(endpoints),
            Some(_) | None => List::unsent(endpoints.to_vec()),
        };
        if view.list.as_ref() == Some(&list) {
            return;
        }
        tracing::warn!(service = self.service, endpoints = endpoints.len(), "using the fallback endpoints");
        if !is_a_balancers {
            return self.apply_to(state, list, ListSource::Fallback, None);
        }
        let gone = state.replace_members(&list);
        state.rings = self.keys.follow(&list, &state.members, &state.rings);
        state.view.list = Some(list);
        self.rebuild_with(&mut state);
        state.let_go(gone);
        drop(state);
        self.list_changed.send_modify(|n| *n += 1);
    }

    /// Changes what is known about the list, not the list.
    pub(crate) fn change_view<T>(&self, change: impl FnOnce(&mut View) -> T) -> T {
        change(&mut self.state().view)
    }

    pub(crate) fn with_view<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.state().view)
    }

    /// Something connected or disconnected: makes the next picker, and sees to it that the right endpoints are kept.
    pub(crate) fn rebuild(&self) {
        let mut state = self.state();
        if !state.closed {
            self.rebuild_with(&mut state);
        }
    }

    /// Calls go by the new picker before any connection is let go: whoever picks finds only those that stay.
    fn rebuild_with(&self, state: &mut State) {
        let last_tier = state.last_tier_wanted();
        let policy = state.view.list.as_ref().map(|l| l.policy).unwrap_or_default();
        let is_by_load = match policy {
            Policy::LeastLoad | Policy::RingHash => true,
            Policy::WeightedRoundRobin | Policy::RoundRobin => false,
        };
        self.probing.set_wanted(is_by_load && state.members.len() > 1);
        let offers = state.members.iter().map(|m| Offer {
            peer: m.endpoint.peer.clone(),
            weight: m.weight,
            capacity_milli: m.capacity_milli,
            priority: m.priority,
            ready: m.is_wanted(last_tier) && m.endpoint.is_ready(),
            item: m.endpoint.clone(),
        });
        let picker = Picker::new(policy, self.fleet.clone(), offers)
            .with_calls_max(self.advice.endpoint_calls_max())
            .with_rings(&state.rings);
        self.picker.store(Arc::new(picker));
        for member in &state.members {
            if member.is_wanted(last_tier) {
                let seed = self.rng().next_u64();
                member.endpoint.start(&self.me, self.connect_timeout, seed);
            } else {
                member.endpoint.stop();
            }
        }
        self.picker_made.send_modify(|n| *n += 1);
    }

    /// Takes the outcomes that nobody was told of yet.
    pub(crate) fn take_outcomes(&self) -> Vec<EndpointOutcomes> {
        let now_us = self.now_us();
        for stalled in self.picker.load().survey(now_us) {
            stalled.item.tally.suspect("calls stay unanswered while other endpoints answer".to_owned());
        }
        self.state().take_outcomes()
    }

    /// A stream to a balancer begins: drops the outcomes that are too old to be told on it. What still goes wrong shows again.
    pub(crate) fn drop_old_outcomes(&self) {
        let mut state = self.state();
        if state.taken_at.elapsed() > OUTCOMES_AGE_MAX {
            drop(state.take_outcomes());
        }
    }

    /// The channel is gone: no connection outlives the calls in flight.
    pub(crate) fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for member in state.members.drain(..) {
            member.endpoint.stop();
        }
        self.picker.store(Arc::new(Picker::new(Default::default(), self.fleet.clone(), [])));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The best tier is kept connected, and the next one as well while the best is in trouble as a whole.
    fn last_tier_wanted(&self) -> Option<u32> {
        let mut tiers: Vec<u32> = self.members.iter().filter(|m| m.weight > 0).map(|m| m.priority).collect();
        tiers.sort_unstable();
        tiers.dedup();
        let in_trouble = |tier: u32| {
            let mut of_tier = self.members.iter().filter(|m| m.weight > 0 && m.priority == tier);
            of_tier.all(|m| matches!(m.endpoint.link(), Link::Failed(_)))
        };
        tiers.iter().copied().find(|tier| !in_trouble(*tier)).or(tiers.last().copied())
    }

    /// Keeps the endpoints that this list names as well, with their connections, and gives the others, to be let go.
    fn replace_members(&mut self, list: &List) -> Vec<Arc<Endpoint>> {
        let mut known: HashMap<String, Arc<Endpoint>> = HashMap::with_capacity(self.members.len());
        let mut gone = Vec::new();
        for member in self.members.drain(..) {
            // An application may name an address twice.
            gone.extend(known.insert(member.endpoint.address.to_string(), member.endpoint));
        }
        // A list in use that grows owes the newcomer its first call at once; a first list owes nobody.
        let in_use = self.view.is_a_balancers() && self.view.list.as_ref().is_some_and(List::offers_any);
        let mut members = Vec::with_capacity(list.endpoints.len());
        for listed in &list.endpoints {
            let held = known.remove(&listed.address);
            // Another incarnation is another process: what was learnt of the old one does not hold for it.
            let same = |e: &Arc<Endpoint>| e.is_meant_by(listed);
            let (kept, replaced) = match held {
                Some(endpoint) if same(&endpoint) => (Some(endpoint), None),
                other => (None, other),
            };
            if let Some(endpoint) = replaced {
                known.insert(listed.address.clone(), endpoint);
            }
            let endpoint = match kept {
                Some(endpoint) => endpoint,
                None => {
                    self.next_id += 1;
                    let Some(endpoint) = Endpoint::new(listed, self.tls.as_ref(), self.next_id) else {
                        continue;
                    };
                    if in_use {
                        endpoint.peer.mark_fresh();
                    }
                    endpoint
                }
            };
            let Listed { weight, capacity_milli, priority, .. } = *listed;
            members.push(Member { endpoint, weight, capacity_milli, priority });
        }
        self.members = members;
        gone.extend(known.into_values());
        gone
    }

    /// No call is sent to these any more; what they have in flight ends, and is told of.
    fn let_go(&mut self, gone: impl IntoIterator<Item = Arc<Endpoint>>) {
        for endpoint in gone {
            endpoint.stop();
            self.departed.push(endpoint);
        }
        let excess = self.departed.len().saturating_sub(DEPARTED_MAX);
        self.departed.drain(..excess);
    }

    fn needs_fallback(&self) -> bool {
        let view = &self.view;
        if self.closed || !view.is_a_balancers() {
            return !self.closed;
        }
        let offered: BTreeSet<&str> = view.list.iter().flat_map(List::offered).map(|e| &*e.address).collect();
        let mut offered = self.members.iter().filter(|m| offered.contains(&*m.endpoint.address)).peekable();
        // Nobody on offer at all is a balancer's word, and not for a fallback to overrule.
        view.balancer.is_none()
            && offered.peek().is_some()
            && offered.all(|m| matches!(m.endpoint.link(), Link::Failed(_)))
    }

    fn take_outcomes(&mut self) -> Vec<EndpointOutcomes> {
        self.taken_at = Instant::now();
        let take = |e: &Arc<Endpoint>| e.tally.take(&e.address, e.incarnation, e.peer.in_flight());
        let mut outcomes: Vec<EndpointOutcomes> = self.members.iter().filter_map(|m| take(&m.endpoint)).collect();
        self.departed.retain(|e| {
            // Looked at first: a call that ends in between is told of next time.
            let is_in_use = e.peer.in_flight() > 0;
            outcomes.extend(take(e));
            is_in_use
        });
        outcomes
    }
}

#[cfg(test)]
impl Pool {
    pub(crate) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.state().members.iter().map(|member| member.endpoint.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picker::Class;

    #[tokio::test]
    async fn a_list_on_disk_comes_before_a_fallback_whichever_is_first() {
        let (on_disk, fallback) = ("127.0.0.1:1", "127.0.0.1:2");
        for is_fallback_first in [false, true] {
            let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(1), 1);
            let read = || {
                let list = List::plain(&[on_disk.to_owned()]);
                let cached = Cached { list, from: "b".to_owned(), age: Duration::ZERO };
                pool.change_view(|view| view.cached(cached));
            };
            if !is_fallback_first {
                read();
            }
            pool.fall_back(&[Listed::plain(fallback.to_owned())]);
            assert_eq!(&*pool.endpoints()[0].address, fallback);
            if is_fallback_first {
                read();
            }
            pool.use_cached();
            assert_eq!(&*pool.endpoints()[0].address, on_disk);
            assert_eq!(pool.with_view(|view| view.source), ListSource::Cache);
            pool.close();
        }
    }

    #[tokio::test]
    async fn an_address_that_was_named_twice_is_let_go_twice() {
        let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(1), 1);
        let list = |address: &str, times| List::plain(&vec![address.to_owned(); times]);
        pool.apply(list("127.0.0.1:1", 2), ListSource::Static, None);
        let twins = pool.endpoints();
        pool.apply(list("127.0.0.1:2", 1), ListSource::Static, None);
        assert_eq!(twins.iter().map(|twin| twin.link()).collect::<Vec<_>>(), [Link::Idle, Link::Idle]);
        pool.close();
    }

    #[tokio::test(start_paused = true)]
    async fn outcomes_of_long_ago_are_not_told_as_news() {
        let pool = Pool::new("s".into(), "c".into(), Duration::from_secs(1), 1);
        pool.apply(List::plain(&["127.0.0.1:1".to_owned()]), ListSource::Static, None);
        let endpoint = pool.endpoints().remove(0);
        let told = || {
            pool.drop_old_outcomes();
            pool.take_outcomes().iter().map(|o| o.ok).sum::<u64>()
        };
        endpoint.tally.count(Class::Ok, 1);
        tokio::time::advance(OUTCOMES_AGE_MAX / 2).await;
        assert_eq!(told(), 1);
        endpoint.tally.count(Class::Ok, 1);
        tokio::time::advance(OUTCOMES_AGE_MAX * 2).await;
        assert_eq!(told(), 0);
        pool.close();
    }
}
