//! A client of the wire contract alone: it follows the list of one service through whatever happens to the balancer, does
//! with each message what the contract says, and notes whom its list loses. It calls nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lookaside_proto::v1::{
    Ack, HeldList, Hello, List, PickRequest, Subscribe, Version, balancer_client::BalancerClient, pick_request::Kind,
    pick_response,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::{SERVICE, wait_until};

/// Between two attempts to reach a balancer that is away.
const RETRY: Duration = Duration::from_millis(200);

/// One client. Dropped, it is gone.
#[derive(Debug)]
pub struct Follower {
    held: Arc<Mutex<Held>>,
    task: JoinHandle<()>,
}

/// What it holds, and what has become of that.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Weights by address; those that were named out are 0.
    pub endpoints: BTreeMap<String, u32>,
    digest: u64,
    version: Option<Version>,
    /// Whether the newest list or tick said so; `None` before the first.
    pub complete: Option<bool>,
    /// Everybody who was offered once and then was not, in order, and by what.
    pub lost: Vec<String>,
    /// By stream: how its first answer came, "list" or "tick", whether it was complete, how many it named, and when.
    pub first_answers: Vec<(&'static str, bool, usize, Instant)>,
    /// Lists received.
    pub lists: usize,
}

impl Held {
    /// Those it would call.
    pub fn offered(&self) -> BTreeSet<String> {
        self.endpoints.iter().filter(|(_, weight)| **weight > 0).map(|(address, _)| address.clone()).collect()
    }

    fn receive(&mut self, list: &List) {
        let before = self.offered();
        if list.complete {
            self.endpoints.clear();
        }
        self.endpoints.extend(list.endpoints.iter().map(|e| (e.address.clone(), e.weight)));
        (self.digest, self.version, self.complete) = (list.digest, list.version, Some(list.complete));
        self.lists += 1;
        let after = self.offered();
        let by = if list.complete { "complete" } else { "incomplete" };
        self.lost.extend(before.difference(&after).map(|gone| format!("{gone} by a {by} list: {:?}", list.note)));
    }
}

impl Follower {
    /// Follows [`SERVICE`] as this client.
    pub fn start(balancer: &str, client_id: &str) -> Self {
        let held = Arc::new(Mutex::new(Held::default()));
        let task = tokio::spawn(follow(format!("http://{balancer}"), client_id.to_owned(), Arc::clone(&held)));
        Self { held, task }
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        lock(&self.held).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(balancer: String, client_id: String, held: Arc<Mutex<Held>>) {
    loop {
        // However a stream ends, there is another.
        let _ = stream(&balancer, &client_id, &held).await;
        wait_until(Instant::now() + RETRY).await;
    }
}

async fn stream(balancer: &str, client_id: &str, held: &Mutex<Held>) -> Result<(), Box<dyn std::error::Error>> {
    let mut client = BalancerClient::connect(balancer.to_owned()).await?;
    let (ask, requests) = mpsc::unbounded_channel();
    let say = |kind| ask.send(PickRequest { kind: Some(kind) });
    let brought = {
        let held = lock(held);
        let list = HeldList {
            service: SERVICE.to_owned(),
            version: held.version,
            digest: held.digest,
            endpoints: held.endpoints.keys().cloned().collect(),
        };
        held.version.map(|_| list)
    };
    let hello = Hello { client_id: client_id.to_owned(), held: brought.into_iter().collect(), ..Hello::default() };
    say(Kind::Hello(hello))?;
    say(Kind::Subscribe(Subscribe { service: SERVICE.to_owned() }))?;
    let mut answers = client.pick(UnboundedReceiverStream::new(requests)).await?.into_inner();
    let mut is_first = true;
    while let Some(answer) = answers.message().await? {
        let version = {
            let mut held = lock(held);
            let (kind, complete, named, version) = match answer.kind {
                Some(pick_response::Kind::List(list)) => {
                    held.receive(&list);
                    ("list", list.complete, list.endpoints.len(), list.version)
                }
                Some(pick_response::Kind::Tick(tick)) => {
                    (held.version, held.complete) = (tick.version, Some(tick.complete));
                    ("tick", tick.complete, held.endpoints.len(), tick.version)
                }
                Some(_) | None => continue,
            };
            if std::mem::take(&mut is_first) {
                held.first_answers.push((kind, complete, named, Instant::now()));
            }
            version
        };
        say(Kind::Ack(Ack { service: SERVICE.to_owned(), version, ..Ack::default() }))?;
    }
    Ok(())
}
