//! Where one call has been: which endpoints it was sent to, what became of it there, and where it is now. Written by its
//! attempts, of which a hedged call has several at once.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::Status;

use crate::endpoint::Endpoint;

/// What a story grows to at most, bytes: it ends up in an error message.
const STORY_BYTES_MAX: usize = 1_000;

#[derive(Debug)]
pub(super) struct Trail {
    state: Mutex<State>,
    /// The call may be at several endpoints at once, so that one is tried as soon as the call goes there.
    is_repeated: bool,
}

#[derive(Debug, Default)]
struct State {
    sent: u32,
    moves: u32,
    tried: Vec<u64>,
    story: String,
    /// Where it went last, if it is there still, and how often it was sent, this time included.
    at: Option<(Arc<Endpoint>, u32)>,
    is_between: bool,
    is_queued: bool,
}

impl Trail {
    pub(super) fn new(is_repeated: bool) -> Self {
        Self { state: Mutex::default(), is_repeated }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call goes to this endpoint. How often it was sent, this time included.
    pub(super) fn went_to(&self, endpoint: &Arc<Endpoint>) -> u32 {
        let mut state = self.state();
        state.sent += 1;
        if self.is_repeated {
            state.tried.push(endpoint.peer.id());
        }
        state.at = Some((endpoint.clone(), state.sent));
        (state.is_between, state.is_queued) = (false, false);
        state.sent
    }

    /// The endpoint provably did not process it. How often that happened, this time included.
    pub(super) fn leaves(&self, endpoint: &Endpoint) -> u32 {
        let mut state = self.state();
        state.at = None;
        state.moves += 1;
        if !self.is_repeated {
            state.tried.push(endpoint.peer.id());
        }
        state.moves
    }

    /// It goes on, and this is why it left.
    pub(super) fn left(&self, address: &str, reason: &str) {
        self.state().tell(format_args!("not processed by {address}: {reason}"));
    }

    /// It failed there, or anywhere, and is tried again or goes on elsewhere.
    pub(super) fn failed_at(&self, address: &str, what: std::fmt::Arguments<'_>) {
        let mut state = self.state();
        state.at = state.at.take().filter(|(endpoint, _)| *endpoint.address != *address);
        let separator = if address.is_empty() { "" } else { ": " };
        state.tell(format_args!("{address}{separator}{what}"));
    }

    /// It waits for its next attempt.
    pub(super) fn waits(&self) {
        let mut state = self.state();
        state.at = None;
        state.is_between = true;
    }

    /// It waits for a place at any endpoint.
    pub(super) fn queues(&self) {
        self.state().is_queued = true;
    }

    pub(super) fn at(&self) -> Option<(Arc<Endpoint>, u32)> {
        self.state().at.clone()
    }

    pub(super) fn sent(&self) -> u32 {
        self.state().sent
    }

    pub(super) fn is_between(&self) -> bool {
        self.state().is_between
    }

    pub(super) fn is_queued(&self) -> bool {
        self.state().is_queued
    }

    /// The endpoints it was at, or for a call that is at one place only, those it has left.
    pub(super) fn tried(&self) -> Vec<u64> {
        self.state().tried.clone()
    }

    /// " (before that, ...)", or nothing.
    pub(super) fn told(&self) -> String {
        let state = self.state();
        if state.story.is_empty() { String::new() } else { format!(" (before that, {})", state.story) }
    }

    /// The status, with what happened before.
    pub(super) fn told_in(&self, status: Status) -> Status {
        let told = self.told();
        if told.is_empty() {
            return status;
        }
        Status::with_metadata(status.code(), format!("{}{told}", status.message()), status.metadata().clone())
    }
}

impl State {
    fn tell(&mut self, what: std::fmt::Arguments<'_>) {
        if self.story.len() > STORY_BYTES_MAX {
            return;
        }
        let separator = if self.story.is_empty() { "" } else { "; " };
        // Writing to memory cannot fail.
        let _ = write!(self.story, "{separator}{what}");
    }
}
