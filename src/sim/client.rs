//! One client: what it holds of lists and connections, and what it has to tell the balancer. How it chooses is its
//! dispatcher's, when it calls is chance's.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use lookaside_core::event::Outcomes;
use lookaside_sdk::picker::{Class, Pace, Rng};

use crate::{
    balancer::List,
    chance::{Stream, stream},
    dispatch::{Dispatcher, Listed},
};

/// One client.
pub(crate) struct Client {
    pub(crate) dispatcher: Box<dyn Dispatcher>,
    /// Chance for its choices.
    pub(crate) rng: Rng,
    list: Option<Rc<List>>,
    /// Number of the newest list that came.
    list_number: u64,
    /// Those it cannot connect to, sorted.
    unreachable: Vec<u32>,
    untold: BTreeMap<u32, Outcomes>,
    /// Endpoints of whose failures is to be told.
    blamed: BTreeSet<u32>,
    /// It has a stream to the balancer.
    pub(crate) subscribed: bool,
    /// The report that is planned; others are void.
    pub(crate) report_plan: u32,
    pub(crate) pace: Pace,
    pub(crate) reported_us: u64,
}

impl Client {
    pub(crate) fn new(number: u32, seed: u64, dispatcher: Box<dyn Dispatcher>) -> Self {
        Self {
            dispatcher,
            rng: stream(seed, Stream::Picks, number),
            list: None,
            list_number: 0,
            unreachable: Vec::new(),
            untold: BTreeMap::new(),
            blamed: BTreeSet::new(),
            subscribed: true,
            report_plan: 0,
            pace: Pace::new(0, 0),
            reported_us: 0,
        }
    }

    /// A list has come. False when a newer one had come before. What an incomplete list does not name stays, as in the SDK.
    pub(crate) fn take_list(&mut self, number: u64, list: Rc<List>) -> bool {
        if number <= self.list_number {
            return false;
        }
        self.list_number = number;
        let list = match &self.list {
            Some(held) if !list.complete => {
                let is_unnamed = |old: &&Listed| list.listed.iter().all(|new| new.endpoint != old.endpoint);
                let unnamed = held.listed.iter().filter(is_unnamed);
                Rc::new(List { complete: false, listed: list.listed.iter().chain(unnamed).copied().collect() })
            }
            Some(_) | None => list,
        };
        self.list = Some(list);
        true
    }

    /// Whether its list names an endpoint.
    pub(crate) fn knows(&self, endpoint: u32) -> bool {
        self.list.as_ref().is_some_and(|list| list.listed.iter().any(|listed| listed.endpoint == endpoint))
    }

    /// It can connect to these of its list and to no others.
    pub(crate) fn connect(&mut self, is_there: impl Fn(u32) -> bool) {
        let listed = self.list.iter().flat_map(|list| list.listed.iter().map(|listed| listed.endpoint));
        self.unreachable = listed.filter(|endpoint| !is_there(*endpoint)).collect();
        self.unreachable.sort_unstable();
    }

    /// A connection was lost or made; whether that is news.
    pub(crate) fn connected(&mut self, endpoint: u32, is_connected: bool) -> bool {
        match (self.unreachable.binary_search(&endpoint), is_connected) {
            (Ok(at), true) => {
                self.unreachable.remove(at);
                true
            }
            (Err(at), false) => {
                self.unreachable.insert(at, endpoint);
                true
            }
            (Ok(_), false) | (Err(_), true) => false,
        }
    }

    /// Its dispatcher hears of the list and the connections as they are now.
    pub(crate) fn relist(&mut self, now_us: u64) {
        let Some(list) = &self.list else { return };
        if self.unreachable.is_empty() {
            return self.dispatcher.list(&list.listed, now_us);
        }
        let ready = |endpoint| self.unreachable.binary_search(&endpoint).is_err();
        let listed: Vec<Listed> =
            list.listed.iter().map(|listed| Listed { ready: ready(listed.endpoint), ..*listed }).collect();
        self.dispatcher.list(&listed, now_us);
    }

    /// Counts how an attempt ended, to be told. Whether it is the first since the last report that blames the endpoint.
    pub(crate) fn count(&mut self, endpoint: u32, class: Class, suspect: bool) -> bool {
        let outcomes = self.untold.entry(endpoint).or_default();
        match class {
            Class::Ok | Class::Caller => outcomes.ok += 1,
            Class::Endpoint | Class::Deadline => outcomes.failed += 1,
            // Nobody's fault, and a sign of life.
            Class::Cancelled | Class::Overload => {}
        }
        outcomes.suspect |= suspect;
        class == Class::Endpoint && self.blamed.insert(endpoint)
    }

    /// Whether an endpoint is to be blamed.
    pub(crate) fn has_news(&self) -> bool {
        !self.blamed.is_empty()
    }

    /// Takes what there is to tell.
    pub(crate) fn take_outcomes(&mut self, now_us: u64) -> BTreeMap<u32, Outcomes> {
        let mut suspects = Vec::new();
        self.dispatcher.survey(now_us, &mut suspects);
        for endpoint in suspects {
            self.untold.entry(endpoint).or_default().suspect = true;
        }
        self.blamed.clear();
        std::mem::take(&mut self.untold)
    }
}
