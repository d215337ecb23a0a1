//! DNS names as sources: the records of a name are the endpoints of a service. Each service that has a name is followed by
//! a task of its own, which asks again whenever the records have lived their life, and tells what came of it: a listing,
//! or a failure that leaves the last one standing ([note 18](../../decisions/0018-how-dns-answers-become-facts.md)).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, future::join_all, stream};
use hickory_resolver::proto::rr::{Name, Record};
use lookaside_core::{
    event::Event,
    model::{EndpointSpec, ServiceName, SourceId},
    snapshot::Snapshot,
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Dns, Live, Records, Service},
    driver::Handle,
    limits::{DNS_EMPTY_TRIES, DNS_LOOKUPS_MAX, DNS_LOOKUPS_PER_SOURCE_MAX, DNS_ROUND_MAX, DNS_TARGETS_MAX},
    source::Source,
    telemetry::DNS_ROUND_DURATION_SECONDS,
};

mod ask;
mod memory;
mod pace;
mod records;
mod system;

use ask::{Answer, Asker, Error, Srv, Target};
use memory::{Asked, Heard, Memory, Round};
use pace::Pace;
use system::ResolvConf;

/// All names that are followed.
pub(crate) struct Names {
    driver: Handle,
    stop: CancellationToken,
    tasks: TaskTracker,
    lookups: Arc<Semaphore>,
    followed: BTreeMap<ServiceName, Followed>,
}

struct Followed {
    source: SourceId,
    dns: Dns,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Names {
    /// None yet. Whatever is started runs in `tasks` and ends with `stop`.
    pub(crate) fn new(driver: Handle, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let lookups = Arc::new(Semaphore::new(DNS_LOOKUPS_MAX));
        Self { driver, stop, tasks, lookups, followed: BTreeMap::new() }
    }

    /// Applies whatever configuration comes into force, until it is told to stop.
    pub(crate) async fn keep_up(mut self, mut live: Live) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = live.changed() => {}
            }
            let config = live.config();
            self.apply(&config.services).await;
        }
    }

    /// From here on those of these services are followed, and no others. The table knows of each when this returns, so
    /// that no list is complete without its first answer.
    pub(crate) async fn apply(&mut self, services: &[Service]) {
        let wanted: BTreeMap<&ServiceName, &Dns> =
            services.iter().filter_map(|service| Some((&service.name, service.dns.as_ref()?))).collect();
        let (over, on): (Vec<_>, Vec<_>) = std::mem::take(&mut self.followed)
            .into_iter()
            .partition(|(service, followed)| wanted.get(service) != Some(&&followed.dns));
        self.followed = on.into_iter().collect();
        for (_, followed) in &over {
            followed.stop.cancel();
        }
        for (service, followed) in over {
            // Not before it is silent: a late answer would count for the next one. An error is a panic, told of elsewhere.
            let _ = followed.task.await;
            if !wanted.contains_key(&service) {
                let source = followed.source;
                self.driver.tell(Event::SourceDropped { source, service }).await;
            }
        }
        let mut new = Vec::new();
        for (service, dns) in wanted.into_iter().filter(|(service, _)| !self.followed.contains_key(service)) {
            match Dns::source(service) {
                Ok(source) => new.push((service, dns, source)),
                Err(_) => {
                    tracing::error!(%service, "its name is too long for a source: its DNS name is not asked");
                }
            }
        }
        // All at once: the table answers once a turn.
        let awaited = new.iter().map(|(service, _, source)| {
            let (source, service) = (source.clone(), (*service).clone());
            self.driver.ask(Event::SourceAwaited { source, service })
        });
        let answers = join_all(awaited).await;
        for ((service, dns, source), answer) in new.into_iter().zip(answers) {
            if let Err(error) = answer {
                tracing::error!(%service, %error, "its DNS name is not asked");
                continue;
            }
            let stop = self.stop.child_token();
            let follower = Follower::new(source.clone(), service.clone(), dns.clone(), Arc::clone(&self.lookups));
            let task = self.tasks.spawn(supervise(follower, self.driver.clone(), stop.clone()));
            self.followed.insert(service.clone(), Followed { source, dns: dns.clone(), stop, task });
        }
    }
}

/// Lets it be followed until `stop`, also after a mistake of ours: a source that silently stopped would look well.
async fn supervise(follower: Follower, driver: Handle, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let (source, wait) = (follower.source.clone(), follower.dns.refresh_max);
        let following = follower.again().follow(driver.clone(), stop.clone());
        if tokio::spawn(following).await.is_ok() {
            return;
        }
        tracing::error!(%source, "following its DNS name ended by a mistake of the balancer; it begins anew");
        let reason = "a mistake of the balancer, told of in its log".to_owned();
        driver.tell(Event::SourceFailed { source, reason }).await;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Follows one name.
struct Follower {
    source: SourceId,
    service: ServiceName,
    dns: Dns,
    lookups: Arc<Semaphore>,
    resolv_conf: ResolvConf,
    asker: Option<Asker>,
    search: Search,
    memory: Memory,
}

impl Source for Follower {
    async fn follow(mut self, driver: Handle, stop: CancellationToken) {
        let mut pace = Pace::new(self.dns.refresh_min, self.dns.refresh_max);
        let mut told = Told::default();
        self.memory = Memory::after(listed(&driver.snapshots().borrow(), &self.source, &self.service).into_iter());
        loop {
            let began = Instant::now();
            let heard = tokio::select! {
                () = stop.cancelled() => return,
                heard = self.round(began) => heard,
            };
            metrics::histogram!(DNS_ROUND_DURATION_SECONDS).record(began.elapsed());
            let wait = pace.next(heard.lives(), rand::random());
            told.tell(&driver, &self.source, &self.service, heard).await;
            tokio::select! {
                () = stop.cancelled() => return,
                // The life of the records began when they were asked for.
                () = tokio::time::sleep_until(began + wait) => {}
            }
        }
    }
}

impl Follower {
    fn new(source: SourceId, service: ServiceName, dns: Dns, lookups: Arc<Semaphore>) -> Self {
        let (resolv_conf, search, memory) = (ResolvConf::default(), Search::default(), Memory::default());
        Self { source, service, dns, lookups, resolv_conf, asker: None, search, memory }
    }

    /// The same one without a memory.
    fn again(&self) -> Self {
        Self::new(self.source.clone(), self.service.clone(), self.dns.clone(), Arc::clone(&self.lookups))
    }

    /// Asks everything once.
    async fn round(&mut self, began: Instant) -> Heard {
        let failed = |reason: String| Heard::Failed { reason, lives: None };
        let name = match Name::from_ascii(&self.dns.name) {
            Ok(name) => name,
            Err(error) => return failed(format!("`{}` is not a DNS name: {error}", self.dns.name)),
        };
        let candidates = match self.look_around(&name) {
            Ok(candidates) => candidates,
            Err(reason) => return failed(Error::NoServer { reason }.to_string()),
        };
        let (Some(asker), Some(own)) = (&self.asker, Target::new(&name)) else {
            return failed(format!("`{}` is not a DNS name", self.dns.name));
        };
        let (until, search) = (began + DNS_ROUND_MAX, &mut self.search);
        let round = match self.dns.records {
            Records::Addresses { v4, v6, .. } => {
                let asked = addresses_of(asker, &candidates, search, [v4, v6], until).await;
                Round { srv: None, addresses: BTreeMap::from([(own.clone(), asked)]) }
            }
            Records::Srv => {
                let (srv, additionals) = srv_of(asker, &candidates, search, until).await;
                let addresses = resolve(asker, &srv, &additionals, until).await;
                Round { srv: Some(srv), addresses }
            }
        };
        self.memory.hear(&self.dns, &own, round)
    }

    /// Makes ready whom to ask, and says for which names.
    fn look_around(&mut self, name: &Name) -> Result<Vec<Name>, String> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if !self.dns.servers.is_empty() {
            self.asker.get_or_insert_with(|| Asker::new(&self.dns.servers, Arc::clone(&self.lookups)));
            return Ok(vec![absolute]);
        }
        let (system, is_new) = self.resolv_conf.look()?;
        if is_new || self.asker.is_none() {
            tracing::debug!(source = %self.source, servers = ?system.servers, "asks the system's name servers");
            self.asker = Some(Asker::new(&system.servers, Arc::clone(&self.lookups)));
        }
        Ok(if self.dns.search { system.candidates(name) } else { vec![absolute] })
    }
}

impl Heard {
    fn lives(&self) -> Option<Duration> {
        match self {
            Self::Listed { lives, .. } | Self::Failed { lives, .. } => *lives,
        }
    }
}

/// What the table has of a source: told by a follower of another configuration, before the balancer started, or by one
/// that ended by a mistake.
fn listed(snapshot: &Snapshot, source: &SourceId, service: &ServiceName) -> Vec<EndpointSpec> {
    let endpoints = snapshot.services.get(service).into_iter().flat_map(|service| &service.endpoints);
    endpoints.filter(|endpoint| endpoint.sources.contains(source)).map(|endpoint| endpoint.spec.clone()).collect()
}

/// Which of the names on a search list is the one that is followed.
#[derive(Default)]
struct Search {
    /// The one that had records last.
    answered: Option<Name>,
    /// Rounds in a row in which it had none.
    absences: u32,
}

/// What was said of one name.
enum Said {
    Found,
    Nothing,
    Failure,
}

impl Search {
    /// Whether the names behind this one do not matter. They are other names: where one cannot be asked for, and where the
    /// one that had records says for the first time that it has none, nothing follows for them.
    fn ends_at(&mut self, name: &Name, said: Said) -> bool {
        match said {
            Said::Found => {
                (self.answered, self.absences) = (Some(name.clone()), 0);
                true
            }
            Said::Failure => {
                self.absences = 0;
                true
            }
            Said::Nothing if self.answered.as_ref() == Some(name) => {
                self.absences = self.absences.saturating_add(1);
                self.absences < DNS_EMPTY_TRIES
            }
            Said::Nothing => false,
        }
    }
}

impl Said {
    fn of<T>(answers: &[&Answer<T>]) -> Self {
        if answers.iter().any(|answer| matches!(answer, Answer::Found { .. })) {
            Self::Found
        } else if answers.iter().any(|answer| matches!(answer, Answer::Failed(_))) {
            Self::Failure
        } else {
            Self::Nothing
        }
    }
}

/// The addresses of the first name that has some.
async fn addresses_of(
    asker: &Asker,
    names: &[Name],
    search: &mut Search,
    [v4, v6]: [bool; 2],
    until: Instant,
) -> Asked {
    let mut asked = Asked::default();
    for name in names {
        let family = async |wanted: bool, v4: bool| match wanted {
            true => Some(in_time(until, asker.addresses(name, v4)).await.unwrap_or(Answer::Failed(Error::Late))),
            false => None,
        };
        let (v4, v6) = tokio::join!(family(v4, true), family(v6, false));
        asked = Asked { v4, v6 };
        let answers: Vec<&Answer<_>> = asked.v4.iter().chain(&asked.v6).collect();
        if search.ends_at(name, Said::of(&answers)) {
            break;
        }
    }
    asked
}

/// Likewise its SRV records, and what came with them.
async fn srv_of(asker: &Asker, names: &[Name], search: &mut Search, until: Instant) -> (Answer<Srv>, Vec<Record>) {
    let mut found = (Answer::Failed(Error::Late), Vec::new());
    for name in names {
        found = in_time(until, asker.srv(name)).await.unwrap_or((Answer::Failed(Error::Late), Vec::new()));
        if search.ends_at(name, Said::of(&[&found.0])) {
            break;
        }
    }
    found
}

/// The addresses of every target: those that came with the SRV records, and the rest as far as there is time.
async fn resolve(asker: &Asker, srv: &Answer<Srv>, additionals: &[Record], until: Instant) -> BTreeMap<Target, Asked> {
    let Answer::Found { records, from, .. } = srv else { return BTreeMap::new() };
    let targets: BTreeSet<Target> = records.iter().map(|record| record.target.clone()).collect();
    let came = ask::ByTarget::new(additionals);
    let questions = targets.into_iter().take(DNS_TARGETS_MAX).map(|target| {
        let came = &came;
        async move {
            let Ok(name) = Name::from_ascii(&**target.text()) else { return (target, Asked::default()) };
            let family = async |v4: bool| match came.addresses(&target, v4, *from) {
                Some(answer) => answer,
                None => in_time(until, asker.addresses(&name, v4)).await.unwrap_or(Answer::Failed(Error::Late)),
            };
            let (v4, v6) = tokio::join!(family(true), family(false));
            (target, Asked { v4: Some(v4), v6: Some(v6) })
        }
    });
    stream::iter(questions).buffer_unordered(DNS_LOOKUPS_PER_SOURCE_MAX).collect().await
}

async fn in_time<T>(until: Instant, asking: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout_at(until, asking).await.ok()
}

/// Tells the table every time, and the log when something changes.
#[derive(Default)]
struct Told {
    /// Whether the last round failed; `None` before the first.
    failing: Option<bool>,
}

impl Told {
    async fn tell(&mut self, driver: &Handle, source: &SourceId, service: &ServiceName, heard: Heard) {
        let failure = match heard {
            Heard::Listed { endpoints, detail, .. } => {
                if self.failing != Some(false) {
                    tracing::info!(%source, detail, "a name server answers");
                }
                let (source, service) = (source.clone(), service.clone());
                let listed = driver.ask(Event::EndpointsListed { source, service, endpoints, detail }).await;
                // Refused whole, and the source is stale by that: half a list misleads.
                listed.err().map(|refusal| refusal.to_string())
            }
            Heard::Failed { reason, .. } => {
                driver.tell(Event::SourceFailed { source: source.clone(), reason: reason.clone() }).await;
                Some(reason)
            }
        };
        if let Some(reason) = failure.as_ref().filter(|_| self.failing != Some(true)) {
            tracing::warn!(%source, reason, "no answer that could be used; what was listed last stays");
        }
        self.failing = Some(failure.is_some());
    }
}

#[cfg(test)]
mod tests;
