//! The driver owns the table: facts and a clock go in, snapshots and decisions come out. One turn takes what has come in
//! since the last, publishes at most one snapshot, and pauses, so that a herd of changes makes one list. It refuses to
//! wait for anybody: a slow disk or reader is not its business, and what it is asked it answers within a turn.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use lookaside_core::{
    config::ServiceConfig,
    decision::{self, Decision},
    event::{Backend, Client, Event, LoadReport, Outcomes, Override},
    kept::Kept,
    model::{Address, ServiceName, Timestamp, Version},
    snapshot::Snapshot,
    table::{Effect, Invariant, Refusal, Table},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot, watch},
    task::JoinHandle,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{
        EVENTS_PER_TURN_MAX, EVENTS_WAITING_MAX, HEARD_SAVE_PERIOD, SAVE_WAIT_MAX, TURN_PAUSE_MAX, TURN_PAUSE_MIN,
    },
    store::{FileState, Store},
    telemetry,
};

mod decisions;
mod intake;

use decisions::Decisions;
use intake::Intake;

/// Why an order was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// The table does not take it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The driver has stopped: the balancer is on its way out.
    #[error("the balancer is stopping")]
    Stopped,
}

/// A decision and when it was taken.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// Milliseconds since 1970.
    pub(crate) at_unix_ms: u64,
    /// What changed, and why.
    pub(crate) decision: Arc<Decision>,
}

/// The way to the driver. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Handle {
    inbox: mpsc::Sender<Message>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    intake: Arc<Intake>,
    decisions: Arc<Decisions>,
    store: Option<Store>,
    clock: Clock,
}

/// What the driver is started with.
pub(crate) struct Start {
    /// Random.
    pub(crate) epoch: u64,
    /// How services are balanced that the configuration does not name.
    pub(crate) defaults: ServiceConfig,
    /// Words that outlived a restart.
    pub(crate) overrides: Vec<Override>,
    /// The last known good state, where there is one.
    pub(crate) kept: Option<Kept>,
    /// Where both are kept; `None` keeps nothing.
    pub(crate) store: Option<Store>,
}

/// Starts the driver; it ends when `stop` is cancelled. The first snapshot is there when this returns.
pub(crate) fn start(start: Start, stop: CancellationToken) -> (Handle, JoinHandle<()>) {
    let clock = Clock { started: Instant::now() };
    let mut table = Table::new(start.epoch, start.defaults, clock.now());
    for word in start.overrides {
        if let Err(refusal) = table.apply(Event::OverrideSet { word }, clock.now()) {
            tracing::warn!(%refusal, "a kept override is not taken");
        }
    }
    if let Some(kept) = start.kept
        && let Err(refusal) = table.restore(kept, clock.now())
    {
        let labels = [("file", "snapshot"), ("reason", "limits")];
        metrics::counter!(telemetry::DATA_REFUSED_TOTAL, &labels).increment(1);
        tracing::error!(%refusal, "what the last start had kept is not taken");
    }
    let first = table.publish(clock.now()).unwrap_or_default();
    let (inbox, messages) = mpsc::channel(EVENTS_WAITING_MAX);
    let (publisher, snapshots) = watch::channel(first);
    let handle = Handle {
        inbox,
        snapshots,
        intake: Arc::new(Intake::default()),
        decisions: Arc::new(Decisions::default()),
        store: start.store,
        clock,
    };
    let driver = Driver {
        saved: to_save(&table, clock.now()),
        saved_at: clock.now(),
        spoken: false,
        ordered: false,
        broken: BTreeMap::new(),
        table,
        intake: Arc::clone(&handle.intake),
        decisions: Arc::clone(&handle.decisions),
        store: handle.store.clone(),
        publisher,
        clock,
    };
    let task = tokio::spawn(driver.drive(messages, stop));
    (handle, task)
}

impl Handle {
    /// Tells a fact; waits while the queue is full, so nothing is lost. A refusal is counted and logged.
    pub(crate) async fn tell(&self, event: Event) {
        // The driver is gone only when the whole balancer goes: facts no longer matter.
        let _ = self.inbox.send(Message::Tell(event)).await;
    }

    /// Tells a fact and waits for the table's answer, at most a few turns.
    pub(crate) async fn ask(&self, event: Event) -> Result<(), Error> {
        self.answer(|reply| Message::Ask(event, reply)).await
    }

    /// What an order would do.
    pub(crate) async fn preview(&self, words: Vec<Override>) -> Result<Vec<Effect>, Error> {
        self.answer(|reply| Message::Preview(words, reply)).await
    }

    /// Carries orders out, all of them or none: the effect of each, and the version from which on lists of its service
    /// show it. They are on disk by then, unless the disk is full, read-only or slower than a second, which is logged and counted: it holds all the
    /// same, until a restart.
    pub(crate) async fn order(&self, words: Vec<Override>) -> Result<Vec<(Effect, Version)>, Error> {
        let done = self.answer(|reply| Message::Order(words, reply)).await?;
        if let Some(store) = &self.store {
            store.settled(SAVE_WAIT_MAX).await;
        }
        Ok(done)
    }

    /// Takes a report in, in place of an older one of the same backend that the driver has not seen yet. Never waits.
    pub(crate) fn report(&self, backend: Backend, load: LoadReport) {
        self.intake.report(backend, load);
    }

    /// Takes outcomes in, added to those the driver has not seen yet. Never waits.
    pub(crate) fn outcomes(&self, client: &Client, service: &ServiceName, address: &Address, outcomes: Outcomes) {
        self.intake.outcomes((client.clone(), service.clone(), address.clone()), outcomes);
    }

    /// The state of affairs, always the newest.
    pub(crate) fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// Decisions kept, oldest first, and those to come; none is missing or twice between the two.
    pub(crate) fn decisions(&self) -> (Vec<Recorded>, broadcast::Receiver<Recorded>) {
        self.decisions.subscribe()
    }

    /// Time since the driver started.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// How the files of the data directory are; none without one.
    pub(crate) fn files(&self) -> Vec<FileState> {
        self.store.as_ref().map(Store::files).unwrap_or_default()
    }

    async fn answer<T>(&self, message: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Message) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.inbox.send(message(reply)).await.map_err(|_| Error::Stopped)?;
        answer.await.unwrap_or(Err(Error::Stopped))
    }
}

/// Milliseconds since 1970; for people and for comparing words between replicas, never for measuring.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

#[derive(Clone, Copy)]
struct Clock {
    started: Instant,
}

impl Clock {
    fn now(&self) -> Timestamp {
        Timestamp::default().after(self.started.elapsed())
    }
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Message {
    Tell(Event),
    Ask(Event, Reply<()>),
    Preview(Vec<Override>, Reply<Vec<Effect>>),
    Order(Vec<Override>, Reply<Vec<(Effect, Version)>>),
}

struct Driver {
    table: Table,
    /// Words as the store has them.
    saved: Vec<Override>,
    saved_at: Timestamp,
    /// Whether a word was heard since, and whether one of them was an order.
    spoken: bool,
    ordered: bool,
    /// Broken promises that were told of.
    broken: BTreeMap<ServiceName, Invariant>,
    intake: Arc<Intake>,
    decisions: Arc<Decisions>,
    store: Option<Store>,
    publisher: watch::Sender<Arc<Snapshot>>,
    clock: Clock,
}

/// Orders that were taken and wait for the version that shows them.
struct Taken {
    effects: Vec<Effect>,
    reply: Reply<Vec<(Effect, Version)>>,
}

impl Driver {
    async fn drive(mut self, mut messages: mpsc::Receiver<Message>, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased; // Who stops the driver gets no further turn.
                () = stop.cancelled() => return self.finish(),
                taken = messages.recv_many(&mut batch, EVENTS_PER_TURN_MAX) => if taken == 0 { return },
                () = self.intake.urgent() => {}
                () = tokio::time::sleep(TURN_PAUSE_MAX) => {}
            }
            let began = Instant::now();
            self.turn(&mut batch);
            let took = began.elapsed();
            metrics::histogram!(telemetry::TURN_DURATION_SECONDS).record(took);
            // Half the time at most goes to the table, however large it is.
            tokio::time::sleep(took.max(TURN_PAUSE_MIN)).await;
        }
    }

    fn turn(&mut self, batch: &mut Vec<Message>) {
        let now = self.clock.now();
        let mut taken = Vec::new();
        // First, since who reports has been registered by then, and whose stream broke reported before: the other way
        // round a last report would look like a sign of life.
        for event in self.intake.drain() {
            self.apply_told(event, now);
        }
        for message in batch.drain(..) {
            self.take(message, now, &mut taken);
        }
        if let Some(snapshot) = self.table.publish(now) {
            self.publish(snapshot);
        }
        self.tell_broken();
        self.save(now);
        if let Some(store) = self.store.as_ref().filter(|store| store.takes_snapshot())
            && let Some(kept) = self.table.keep(now)
        {
            store.save_snapshot(kept);
        }
        self.answer(taken);
    }

    /// The next start begins where this one ends.
    fn finish(mut self) {
        let now = self.clock.now();
        self.ordered = true;
        self.save(now);
        if let (Some(store), Some(kept)) = (&self.store, self.table.keep(now)) {
            store.save_snapshot(kept);
        }
    }

    /// Who asked may have gone away meanwhile: an answer that finds nobody is dropped.
    fn take(&mut self, message: Message, now: Timestamp, taken: &mut Vec<Taken>) {
        match message {
            Message::Tell(event) => self.apply_told(event, now),
            Message::Ask(event, reply) => {
                let _ = reply.send(self.apply(event, now).map_err(Error::from));
            }
            Message::Preview(words, reply) => {
                let _ = reply.send(self.preview(words, now).map(|(effects, _)| effects).map_err(Error::from));
            }
            Message::Order(words, reply) => match self.order(words, now) {
                Ok(effects) => taken.push(Taken { effects, reply }),
                Err(refusal) => {
                    let _ = reply.send(Err(refusal.into()));
                }
            },
        }
    }

    /// What orders would do; the first that is refused refuses them all.
    fn preview(&self, words: Vec<Override>, now: Timestamp) -> Result<(Vec<Effect>, Vec<Override>), Refusal> {
        let words: Vec<_> = words.into_iter().map(|word| self.timely(word)).collect();
        let effects = words.iter().map(|word| self.table.preview(word, now)).collect::<Result<_, _>>()?;
        Ok((effects, words))
    }

    fn order(&mut self, words: Vec<Override>, now: Timestamp) -> Result<Vec<Effect>, Refusal> {
        let (effects, words) = self.preview(words, now)?;
        for word in words {
            self.ordered = true;
            self.apply(Event::OverrideSet { word }, now)?;
        }
        Ok(effects)
    }

    /// An order given now is the newest there is, whatever the wall clock said when the ones before were set.
    fn timely(&self, word: Override) -> Override {
        let newest = self.table.newest_word_unix_ms(&word.service);
        Override { set_at_unix_ms: word.set_at_unix_ms.max(newest.saturating_add(1)), ..word }
    }

    fn apply_told(&mut self, event: Event, now: Timestamp) {
        if let Err(refusal) = self.apply(event, now) {
            metrics::counter!(telemetry::EVENTS_REFUSED_TOTAL).increment(1);
            tracing::debug!(%refusal, "a fact is not taken");
        }
    }

    fn apply(&mut self, event: Event, now: Timestamp) -> Result<(), Refusal> {
        self.spoken |= matches!(event, Event::OverrideSet { .. });
        self.table.apply(event, now)
    }

    fn publish(&mut self, snapshot: Arc<Snapshot>) {
        let before = Arc::clone(&self.publisher.borrow());
        for (name, service) in &snapshot.services {
            let old = before.services.get(name);
            if old.is_some_and(|old| Arc::ptr_eq(old, service)) {
                continue;
            }
            for decision in decision::between(old.map(Arc::as_ref), service) {
                self.decisions.record(decision);
            }
        }
        self.publisher.send_replace(snapshot);
    }

    /// Once per change, as every log.
    fn tell_broken(&mut self) {
        if *self.table.broken() == self.broken {
            return;
        }
        for (service, broken) in self.table.broken() {
            if self.broken.get(service) != Some(broken) {
                metrics::counter!(telemetry::INVARIANTS_BROKEN_TOTAL).increment(1);
                tracing::error!(%service, %broken, "a snapshot is held back, the last good one stays");
            }
        }
        self.broken.clone_from(self.table.broken());
    }

    /// Words that end need no saving: the file says when they do.
    fn save(&mut self, now: Timestamp) {
        let is_due = self.ordered || now.since(self.saved_at) >= HEARD_SAVE_PERIOD;
        if !self.spoken || !is_due {
            return;
        }
        (self.spoken, self.ordered) = (false, false);
        let Some(store) = &self.store else { return };
        let words = to_save(&self.table, now);
        if words != self.saved {
            store.save_overrides(words.clone());
            (self.saved, self.saved_at) = (words, now);
        }
    }

    fn answer(&self, taken: Vec<Taken>) {
        if taken.is_empty() {
            return;
        }
        let snapshot = self.publisher.borrow();
        let shown = |effect: Effect| {
            let version = snapshot.services.get(&effect.after.name).map_or(snapshot.version, |s| s.version);
            (effect, version)
        };
        for Taken { effects, reply } in taken {
            let _ = reply.send(Ok(effects.into_iter().map(shown).collect()));
        }
    }
}

/// What remains of a word is told by the wall clock on disk, so that equal words look equal at all times.
fn to_save(table: &Table, now: Timestamp) -> Vec<Override> {
    table.overrides(now).into_iter().map(|word| Override { remaining: None, ..word }).collect()
}

#[cfg(test)]
mod tests;
