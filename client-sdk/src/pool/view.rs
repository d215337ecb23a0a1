//! What is known about the list: where it came from, when, and what is wrong. It words the error of a call that finds no
//! endpoint, since that is made of just these facts.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use super::Pool;
use crate::{
    cache::Cached,
    endpoint::Link,
    list::{List, Listed},
    snapshot::{EndpointSnapshot, EndpointState, ListSource, Mode, Snapshot, Version},
    why::{What, Why, why},
};

/// Endpoints named in an error message; the rest is counted.
const NAMED_MAX: usize = 3;

#[derive(Debug)]
pub(crate) struct View {
    pub(crate) source: ListSource,
    pub(crate) list: Option<List>,
    /// The balancer that sent the list.
    from: Option<String>,
    /// When the list came, or was last confirmed, or was read from the disk.
    heard_at: Option<Instant>,
    /// How old it was by then.
    older_by: Duration,
    /// From the disk, until a balancer's list is in use.
    cached: Option<Cached>,
    /// What is wrong with the cache on disk; empty when nothing is, or there is none.
    pub(crate) cache_trouble: String,
    /// The balancer connected to now.
    pub(crate) balancer: Option<String>,
    /// What the balancer said it cannot do, or why there is none.
    pub(crate) trouble: String,
    pub(crate) fallback_configured: bool,
}

impl Default for View {
    fn default() -> Self {
        Self {
            source: ListSource::None,
            list: None,
            from: None,
            heard_at: None,
            older_by: Duration::ZERO,
            cached: None,
            cache_trouble: String::new(),
            balancer: None,
            trouble: String::new(),
            fallback_configured: false,
        }
    }
}

impl View {
    pub(super) fn hold(&mut self, list: List, source: ListSource, from: Option<String>) {
        self.list = Some(list);
        self.source = source;
        self.from = from;
        self.heard();
        if self.is_a_balancers() {
            self.cached = None;
        }
    }

    fn heard(&mut self) {
        self.heard_at = Some(Instant::now());
        self.older_by = Duration::ZERO;
    }

    /// How long ago a balancer last stood by the list, or, of one that no balancer sent, how long it has been in use.
    pub(crate) fn list_age(&self) -> Option<Duration> {
        self.heard_at.map(|at| at.elapsed() + self.older_by)
    }

    /// A list was found on disk. It is what this client holds, but serves only once no balancer answers.
    pub(crate) fn cached(&mut self, cached: Cached) {
        if !self.is_a_balancers() {
            (self.heard_at, self.older_by) = (Some(Instant::now()), cached.age);
            self.cached = Some(cached);
        }
    }

    pub(super) fn take_cached(&mut self) -> Option<Cached> {
        self.cached.take()
    }

    /// The list in use came from the disk, and was this old.
    pub(super) fn is_older_by(&mut self, age: Duration) {
        self.older_by = age;
    }

    pub(super) fn forget(&mut self) {
        self.list = None;
        self.cached = None;
        self.source = ListSource::None;
    }

    /// A balancer confirmed the list held, under this name.
    pub(crate) fn confirm(&mut self, version: Version, from: String) {
        if let Some(list) = self.list.as_mut() {
            list.version = Some(version);
            self.source = ListSource::Balancer;
            self.from = Some(from);
            self.heard();
        }
    }

    /// A stream to a balancer stands.
    pub(crate) fn connected(&mut self, balancer: String) {
        self.balancer = Some(balancer);
        self.trouble.clear();
    }

    /// This one is of no use; another may be, with which a stream stands.
    pub(crate) fn lost(&mut self, balancer: &str, reason: &str) {
        let trouble = format!("{balancer}: {reason}");
        match &self.balancer {
            Some(other) if other != balancer => self.trouble = trouble,
            Some(_) | None => self.disconnected(trouble),
        }
    }

    /// There is none any more; the list keeps serving.
    pub(crate) fn disconnected(&mut self, trouble: String) {
        self.balancer = None;
        self.trouble = trouble;
        if self.source == ListSource::Balancer {
            self.source = ListSource::LastGood;
        }
    }

    /// Whether the list in use is one that a balancer sent.
    pub(crate) fn is_a_balancers(&self) -> bool {
        match self.source {
            ListSource::Balancer | ListSource::LastGood | ListSource::Cache => true,
            ListSource::None | ListSource::Fallback | ListSource::Static => false,
        }
    }

    /// The list a balancer sent, whether that balancer is there or away, and whether the list is in use or on disk.
    pub(crate) fn balancers_list(&self) -> Option<&List> {
        self.list.as_ref().filter(|_| self.is_a_balancers()).or(self.cached.as_ref().map(|cached| &cached.list))
    }

    /// "list e7:41 from 127.0.0.1:7400 3s ago"
    fn describe(&self) -> String {
        let list = match self.source {
            ListSource::None => return "no list yet".to_owned(),
            ListSource::Fallback => return "the fallback".to_owned(),
            ListSource::Static => return "the static target".to_owned(),
            ListSource::Balancer | ListSource::LastGood | ListSource::Cache => self.list.as_ref(),
        };
        let mut text = if self.source == ListSource::Cache { "cached list" } else { "list" }.to_owned();
        if let Some(version) = list.and_then(|l| l.version) {
            let _ = write!(text, " {version}");
        }
        if let Some(from) = &self.from {
            let _ = write!(text, " from {from}");
        }
        if let Some(age) = self.list_age() {
            let _ = write!(text, " {}s ago", age.as_secs());
        }
        text
    }
}

impl Pool {
    /// Whether waiting for an endpoint makes sense: some connection is wanted, and may yet come about.
    pub(crate) fn may_get_ready(&self) -> bool {
        self.with_view(|view| view.list.as_ref().is_some_and(List::offers_any))
    }

    /// Whether every endpoint on offer was tried and could not be connected to.
    pub(crate) fn is_unreachable(&self) -> bool {
        let state = self.state();
        let mut offered = state.members.iter().filter(|m| m.weight > 0);
        offered.all(|m| matches!(m.endpoint.link(), Link::Failed(_)))
    }

    /// Whether any list is in use.
    pub(crate) fn has_list(&self) -> bool {
        self.with_view(|view| view.list.is_some())
    }

    /// Why there is no endpoint for a call, and what to do about it.
    pub(crate) fn explain_none(&self) -> String {
        let state = self.state();
        let view = &state.view;
        let mut text = format!("no endpoint for {:?}: {}", self.service, view.describe());
        match &view.list {
            None => {}
            Some(list) if !list.offers_any() => {
                text.push_str(match list.mode {
                    Mode::Empty => " is EMPTY",
                    Mode::Unknown | Mode::Normal | Mode::Panic | Mode::ZoneFailover | Mode::LastGood => {
                        " offers no endpoint"
                    }
                });
                text.push_str(&reasons(&list.endpoints));
            }
            Some(_) if !self.picker().candidates().is_empty() => {
                let (count, max) = (self.picker().candidates().len(), self.advice.endpoint_calls_max());
                let _ =
                    write!(text, " has {count} endpoints connected, each with the {max} calls it may have in flight");
            }
            Some(_) => {
                let wanted: Vec<_> = state.members.iter().filter(|m| m.weight > 0).collect();
                let _ = write!(text, " has {} endpoints, none connected (", wanted.len());
                for (n, member) in wanted.iter().take(NAMED_MAX).enumerate() {
                    let separator = if n == 0 { "" } else { "; " };
                    let how = match member.endpoint.link() {
                        Link::Idle => "not tried yet".to_owned(),
                        Link::Connecting | Link::Ready => "connecting".to_owned(),
                        Link::Failed(reason) => reason,
                    };
                    let _ = write!(text, "{separator}{}: {how}", member.endpoint.address);
                }
                if wanted.len() > NAMED_MAX {
                    let _ = write!(text, "; and {} more", wanted.len() - NAMED_MAX);
                }
                text.push(')');
            }
        }
        if let Some(note) = view.list.as_ref().map(|l| &l.note).filter(|n| !n.is_empty()) {
            let _ = write!(text, "; note: {note}");
        }
        if !view.trouble.is_empty() {
            let _ = write!(text, "; balancer: {}", view.trouble);
        }
        match view.source {
            ListSource::Static | ListSource::Fallback => return text,
            ListSource::None | ListSource::Balancer | ListSource::LastGood | ListSource::Cache => {}
        }
        if !view.cache_trouble.is_empty() {
            let _ = write!(text, "; cache: {}", view.cache_trouble);
        }
        text.push_str(match view.fallback_configured {
            true => "; fallback: not used, a list has come",
            false => "; fallback: none configured",
        });
        let _ = write!(text, ". try: lookaside explain {} --client {}", self.service, self.client_id);
        text
    }

    /// Adds the command that tells more to a status that names an endpoint and is of this library's own making.
    pub(crate) fn with_hint(&self, status: Status) -> Status {
        let Some(Why { endpoint: Some(endpoint), what, .. }) = why(&status) else { return status };
        let has_balancer = self.with_view(|view| view.balancers_list().is_some());
        if what == What::Answered || !has_balancer {
            return status;
        }
        let hint = format!("lookaside explain {} --endpoint {endpoint} --client {}", self.service, self.client_id);
        let message = format!("{}. try: {hint}", status.message());
        Status::with_metadata(status.code(), message, status.metadata().clone())
    }

    /// Copies what is held.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let view = &state.view;
        let list = view.list.as_ref();
        let localities: BTreeMap<&str, &str> =
            list.iter().flat_map(|l| &l.endpoints).map(|e| (e.address.as_str(), e.locality.as_str())).collect();
        let endpoints = state.members.iter().map(|m| {
            let (state, trouble) = match m.endpoint.link() {
                Link::Idle => (EndpointState::Idle, String::new()),
                Link::Connecting => (EndpointState::Connecting, String::new()),
                Link::Ready if m.endpoint.peer.is_aside() => {
                    (EndpointState::Aside, "its calls fail or stay unanswered".to_owned())
                }
                Link::Ready => (EndpointState::Ready, String::new()),
                Link::Failed(reason) => (EndpointState::Failed, reason),
            };
            EndpointSnapshot {
                address: m.endpoint.address.to_string(),
                locality: localities.get(&*m.endpoint.address).copied().unwrap_or_default().to_owned(),
                weight: m.weight,
                priority: m.priority,
                state,
                in_flight: m.endpoint.peer.in_flight(),
                trouble,
            }
        });
        Snapshot {
            service: self.service.clone(),
            client_id: self.client_id.clone(),
            source: view.source,
            mode: list.map_or(Mode::Unknown, |l| l.mode),
            note: list.map(|l| l.note.clone()).unwrap_or_default(),
            version: list.and_then(|l| l.version),
            digest: list.map_or(0, |l| l.digest),
            complete: list.is_some_and(|l| l.complete),
            policy: list.map(|l| l.policy).unwrap_or_default(),
            balancer: view.balancer.clone(),
            trouble: view.trouble.clone(),
            list_age: list.and_then(|_| view.list_age()),
            cache_trouble: view.cache_trouble.clone(),
            endpoints: endpoints.collect(),
        }
    }
}

/// " (2 HEALTH_UNREACHABLE, 1 ADMIN_DRAIN)", or nothing.
fn reasons(endpoints: &[Listed]) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|e| !e.reason.is_empty()) {
        *counts.entry(endpoint.reason).or_default() += 1;
    }
    if counts.is_empty() {
        return String::new();
    }
    let words: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    format!(" ({})", words.join(", "))
}
