//! Who asks, what was sent to them, and what they said of it. This is what tells a backend that drains when nobody
//! names it any more, and an operator who is in step. Takes no part in what is sent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use lookaside_core::model::{Address, ClientId, Locality, ServiceName, Version};
use tokio::{sync::watch, time::Instant};

use super::{cohorts::List, few::Few};
use crate::{
    accept::Holding,
    limits::{ACK_WAIT, UNACKNOWLEDGED_LISTS_MAX},
};

/// Lists in use, and by how many streams.
type ByDigest = BTreeMap<u64, (Arc<List>, usize)>;

/// All streams of all front ends.
pub(crate) struct Clients {
    next: AtomicU64,
    streams: Mutex<BTreeMap<u64, Arc<Mutex<Client>>>>,
    /// Every list that some client may be using.
    lists: Mutex<BTreeMap<ServiceName, ByDigest>>,
    changed: watch::Sender<u64>,
}

/// Who is at the other end of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    /// Its name for itself.
    pub(crate) id: ClientId,
    /// Where it connects from.
    pub(crate) peer: Option<SocketAddr>,
    /// Its library.
    pub(crate) sdk: String,
    /// Where it runs.
    pub(crate) locality: Locality,
}

/// One stream.
struct Client {
    who: Who,
    since: Instant,
    /// On the heap each: a node of the map has room for eleven, and most clients want one.
    services: Few<ServiceName, Held>,
}

/// What a stream has of one service.
#[derive(Default)]
struct Held {
    /// What the client said it uses, until a list from us says otherwise.
    before: Brought,
    applied: Option<Arc<List>>,
    /// Sent since, oldest first, with the versions they were sent under.
    unacknowledged: VecDeque<(Version, Arc<List>)>,
    sent: Option<Sent>,
    applied_version: Option<Version>,
    refused: String,
    calls: Calls,
}

/// Addresses that a client brought with it.
#[derive(Debug, Default)]
pub(crate) struct Brought {
    pub(crate) addresses: BTreeSet<Address>,
    /// Counts them for as long as they are kept.
    pub(crate) _holding: Option<Holding>,
}

#[derive(Clone)]
struct Sent {
    version: Version,
    list: Arc<List>,
    at: Instant,
}

impl Sent {
    fn now(version: Version, list: &Arc<List>) -> Self {
        Self { version, list: Arc::clone(list), at: Instant::now() }
    }
}

/// Calls as the client told of them.
#[derive(Default, Clone, Copy)]
struct Calls {
    told_at: Option<Instant>,
    per_second: f64,
    failed: u64,
}

/// How far a stream is with the newest list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It uses it.
    Synced,
    /// It was sent just now.
    Pending,
    /// It was sent a while ago, and an older one is in use.
    Stale,
    /// The client does not take it.
    Refused,
    /// The client has said nothing of any list for a while.
    NeverAcked,
}

impl Standing {
    /// The word, as in the wire contract.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Synced => "SYNCED",
            Self::Pending => "PENDING",
            Self::Stale => "STALE",
            Self::Refused => "REFUSED",
            Self::NeverAcked => "NEVER_ACKED",
        }
    }

    /// Whether it is time to look into it.
    pub(crate) fn is_bad(self) -> bool {
        match self {
            Self::Synced | Self::Pending => false,
            Self::Stale | Self::Refused | Self::NeverAcked => true,
        }
    }
}

/// A stream and a service, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct View {
    /// Streams are numbered as they come.
    pub(crate) stream: u64,
    pub(crate) who: Who,
    pub(crate) service: ServiceName,
    pub(crate) sent: Option<Version>,
    pub(crate) applied: Option<Version>,
    pub(crate) standing: Standing,
    pub(crate) refused: String,
    pub(crate) calls_per_second: f64,
    pub(crate) failed: u64,
    pub(crate) age: std::time::Duration,
    /// The newest list sent, and when; the list in use.
    pub(crate) sent_list: Option<(Arc<List>, std::time::Duration)>,
    pub(crate) applied_list: Option<Arc<List>>,
}

impl Clients {
    /// Nobody.
    pub(crate) fn new() -> Self {
        Self {
            next: AtomicU64::new(0),
            streams: Mutex::default(),
            lists: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// A new stream; it is forgotten when the session is dropped.
    pub(crate) fn join(self: &Arc<Self>, who: Who) -> Session {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(Mutex::new(Client { who, since: Instant::now(), services: Few::default() }));
        lock(&self.streams).insert(id, Arc::clone(&client));
        Session { id, client, clients: Arc::clone(self) }
    }

    /// Whether any connected client may be using a list that names the address with a weight.
    pub(crate) fn holds(&self, service: &ServiceName, address: &Address) -> bool {
        let named = |list: &List| list.place(address).is_some_and(|place| place.weight > 0);
        if lock(&self.lists).get(service).is_some_and(|lists| lists.values().any(|(list, _)| named(list))) {
            return true;
        }
        // What clients brought with them is rare: only those that resumed and have not taken a list since.
        self.streams().iter().any(|client| {
            lock(client).services.get(service).is_some_and(|held| held.before.addresses.contains(address))
        })
    }

    /// Changes whenever the answer of [`Clients::holds`] may have.
    pub(crate) fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every stream and service, by stream.
    pub(crate) fn views(&self) -> Vec<View> {
        let mut views = Vec::new();
        let streams: Vec<_> = lock(&self.streams).iter().map(|(id, client)| (*id, Arc::clone(client))).collect();
        for (stream, client) in streams {
            let client = lock(&client);
            views.extend(client.services.iter().map(|(service, held)| held.view(stream, &client, service)));
        }
        views
    }

    /// Streams open.
    pub(crate) fn count(&self) -> usize {
        lock(&self.streams).len()
    }

    fn streams(&self) -> Vec<Arc<Mutex<Client>>> {
        lock(&self.streams).values().cloned().collect()
    }

    fn take(&self, service: &ServiceName, list: &Arc<List>) {
        let mut lists = lock(&self.lists);
        let held = lists.entry(service.clone()).or_default();
        held.entry(list.assignment.digest).or_insert_with(|| (Arc::clone(list), 0)).1 += 1;
    }

    fn give_back(&self, service: &ServiceName, list: &Arc<List>) {
        let mut lists = lock(&self.lists);
        let Some(held) = lists.get_mut(service) else { return };
        if let Some((_, streams)) = held.get_mut(&list.assignment.digest) {
            *streams -= 1;
            if *streams == 0 {
                held.remove(&list.assignment.digest);
            }
        }
        if held.is_empty() {
            lists.remove(service);
        }
    }

    fn bump(&self) {
        self.changed.send_modify(|changes| *changes = changes.wrapping_add(1));
    }
}

/// One stream's part in it.
pub(crate) struct Session {
    id: u64,
    client: Arc<Mutex<Client>>,
    clients: Arc<Clients>,
}

impl Session {
    /// The client wants a service, and uses these addresses of it already.
    pub(crate) fn subscribed(&self, service: &ServiceName, before: Brought) {
        let held = Held { before, ..Held::default() };
        lock(&self.client).services.insert(service.clone(), held);
    }

    /// The client does not want it any more.
    pub(crate) fn unsubscribed(&self, service: &ServiceName) {
        let held = lock(&self.client).services.remove(service);
        if let Some(held) = held {
            self.release(service, held);
        }
    }

    /// A list is on its way.
    pub(crate) fn sent(&self, service: &ServiceName, version: Version, list: &Arc<List>) {
        let mut client = lock(&self.client);
        let Some(held) = client.services.get_mut(service) else { return };
        held.sent = Some(Sent::now(version, list));
        held.unacknowledged.push_back((version, Arc::clone(list)));
        self.clients.take(service, list);
        if held.unacknowledged.len() > UNACKNOWLEDGED_LISTS_MAX
            && let Some((_, oldest)) = held.unacknowledged.pop_front()
        {
            self.clients.give_back(service, &oldest);
        }
    }

    /// The list that the client holds is called so from now on. Without one sent before, it is the one it brought.
    pub(crate) fn rebased(&self, service: &ServiceName, version: Version, list: &Arc<List>) {
        let mut client = lock(&self.client);
        let Some(held) = client.services.get_mut(service) else { return };
        let digest = list.assignment.digest;
        let resumed = held.sent.is_none();
        match &mut held.sent {
            Some(sent) => sent.version = version,
            None => {
                held.sent = Some(Sent::now(version, list));
                held.applied = Some(Arc::clone(list));
                held.forget_before();
                self.clients.take(service, list);
            }
        }
        if held.applied.as_ref().is_some_and(|applied| applied.assignment.digest == digest) {
            held.applied_version = Some(version);
        }
        drop(client);
        if resumed {
            self.clients.bump();
        }
    }

    /// The client uses a list that was sent. False when no such list was.
    pub(crate) fn applied(&self, service: &ServiceName, version: Version) -> bool {
        let mut client = lock(&self.client);
        let Some(held) = client.services.get_mut(service) else { return false };
        let Some(at) = held.acknowledged_by(version) else { return held.uses(version) };
        for (version, list) in held.unacknowledged.drain(..=at) {
            // The last of them is the one.
            held.applied_version = Some(version);
            if let Some(old) = held.applied.replace(list) {
                self.clients.give_back(service, &old);
            }
        }
        if let Some(sent) = &held.sent
            && held.applied.as_ref().is_some_and(|applied| applied.assignment.digest == sent.list.assignment.digest)
        {
            held.applied_version = Some(sent.version);
        }
        held.forget_before();
        held.refused.clear();
        drop(client);
        self.clients.bump();
        true
    }

    /// The client does not use a list that was sent; the one before stays. False when no such list was.
    pub(crate) fn refused(&self, service: &ServiceName, version: Version, words: String) -> bool {
        let mut client = lock(&self.client);
        let Some(held) = client.services.get_mut(service) else { return false };
        let Some(at) = held.unacknowledged.iter().position(|(sent, _)| *sent == version) else { return false };
        held.refused = words;
        if let Some((_, list)) = held.unacknowledged.remove(at) {
            self.clients.give_back(service, &list);
        }
        drop(client);
        self.clients.bump();
        true
    }

    /// The client told of this many calls ended, and failed among them.
    pub(crate) fn told(&self, service: &ServiceName, calls: u64, failed: u64) {
        let mut client = lock(&self.client);
        let Some(held) = client.services.get_mut(service) else { return };
        let now = Instant::now();
        if let Some(before) = held.calls.told_at.replace(now) {
            // Suspicions come out of turn: a period of no length says nothing.
            let seconds = now.duration_since(before).as_secs_f64().max(0.1);
            held.calls.per_second = calls as f64 / seconds;
        }
        held.calls.failed = held.calls.failed.saturating_add(failed);
    }

    /// Those of the addresses that the client can know from us, or brought with it.
    pub(crate) fn known(&self, service: &ServiceName, addresses: &[Address]) -> Vec<bool> {
        let client = lock(&self.client);
        let Some(held) = client.services.get(service) else { return vec![false; addresses.len()] };
        addresses.iter().map(|address| held.knows(address)).collect()
    }

    fn release(&self, service: &ServiceName, held: Held) {
        for list in held.unacknowledged.into_iter().map(|(_, list)| list).chain(held.applied) {
            self.clients.give_back(service, &list);
        }
        self.clients.bump();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        lock(&self.clients.streams).remove(&self.id);
        let services = std::mem::take(&mut lock(&self.client).services);
        for (service, held) in services {
            self.release(&service, held);
        }
    }
}

impl Held {
    /// What the client brought is replaced by a list of ours; an incomplete one is silent about what it does not name,
    /// and the client goes on using that.
    fn forget_before(&mut self) {
        match &self.applied {
            Some(list) if !list.assignment.complete => {
                self.before.addresses.retain(|address| list.place(address).is_none());
            }
            Some(_) | None => self.before = Brought::default(),
        }
    }

    /// Which of the lists sent a version means: that of the list, or the one that a tick called it by later.
    fn acknowledged_by(&self, version: Version) -> Option<usize> {
        let sent = self.sent.as_ref().filter(|sent| sent.version == version);
        self.unacknowledged.iter().rposition(|(sent_as, list)| {
            *sent_as == version || sent.is_some_and(|sent| sent.list.assignment.digest == list.assignment.digest)
        })
    }

    /// Whether the version is what the list in use is called now: ticks are acknowledged like lists.
    fn uses(&self, version: Version) -> bool {
        self.applied.is_some() && self.applied_version == Some(version)
    }

    fn knows(&self, address: &Address) -> bool {
        self.before.addresses.contains(address)
            || self.unacknowledged.iter().rev().any(|(_, list)| list.place(address).is_some())
            || self.applied.as_ref().is_some_and(|list| list.place(address).is_some())
    }

    fn standing(&self) -> Standing {
        let Some(sent) = &self.sent else { return Standing::Pending };
        let applied = self.applied.as_ref().map(|list| list.assignment.digest);
        if applied == Some(sent.list.assignment.digest) {
            Standing::Synced
        } else if !self.refused.is_empty() {
            Standing::Refused
        } else if sent.at.elapsed() < ACK_WAIT {
            Standing::Pending
        } else if applied.is_some() {
            Standing::Stale
        } else {
            Standing::NeverAcked
        }
    }

    fn view(&self, stream: u64, client: &Client, service: &ServiceName) -> View {
        View {
            stream,
            who: client.who.clone(),
            service: service.clone(),
            sent: self.sent.as_ref().map(|sent| sent.version),
            applied: self.applied_version,
            standing: self.standing(),
            refused: self.refused.clone(),
            calls_per_second: self.calls.per_second,
            failed: self.calls.failed,
            age: client.since.elapsed(),
            sent_list: self.sent.as_ref().map(|sent| (Arc::clone(&sent.list), sent.at.elapsed())),
            applied_list: self.applied.clone(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
