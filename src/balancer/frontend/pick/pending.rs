//! What is due to one client: for each service the newest answer alone, in the order in which services became due, so
//! that a busy one does not starve the others; and what is to be said about single services.

use std::{collections::VecDeque, sync::Arc};

use lookaside_core::model::ServiceName;
use lookaside_proto::v1::ServiceError;
use tokio::time::Instant;

use crate::{
    frontend::{cohorts::Answer, few::Few},
    limits::ERRORS_WAITING_MAX,
};

/// See above.
#[derive(Default)]
pub(super) struct Pending {
    answers: Few<ServiceName, Arc<Answer>>,
    turns: VecDeque<ServiceName>,
    errors: VecDeque<ServiceError>,
    since: Option<Instant>,
}

/// One thing to be sent.
pub(super) enum Due {
    Answer(ServiceName, Arc<Answer>),
    Error(ServiceError),
}

impl Pending {
    /// An answer, in place of an older one.
    pub(super) fn answer(&mut self, service: ServiceName, answer: Arc<Answer>) {
        if self.answers.insert(service.clone(), answer).is_none() {
            self.turns.push_back(service);
        }
        self.since.get_or_insert_with(Instant::now);
    }

    /// A word about a service.
    pub(super) fn error(&mut self, error: ServiceError) {
        if self.errors.len() < ERRORS_WAITING_MAX {
            self.errors.push_back(error);
            self.since.get_or_insert_with(Instant::now);
        }
    }

    /// Nothing about this service is due any more.
    pub(super) fn forget(&mut self, service: &ServiceName) {
        if self.answers.remove(service).is_some() {
            self.turns.retain(|turn| turn != service);
        }
        self.rest();
    }

    /// Since when something has been waiting; `None` when nothing is.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes what is due next: the client has room for it.
    pub(super) fn next(&mut self) -> Option<Due> {
        self.since = Some(Instant::now());
        let due = match self.errors.pop_front() {
            Some(error) => Some(Due::Error(error)),
            None => self.turns.pop_front().and_then(|service| {
                let answer = self.answers.remove(&service)?;
                Some(Due::Answer(service, answer))
            }),
        };
        self.rest();
        due
    }

    fn rest(&mut self) {
        if self.errors.is_empty() && self.turns.is_empty() {
            self.since = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> ServiceName {
        ServiceName::parse(name).unwrap()
    }

    #[test]
    fn the_newest_answer_replaces_the_one_that_waits_and_keeps_its_turn() {
        let mut pending = Pending::default();
        pending.answer(service("a"), Arc::new(Answer::Silent));
        pending.answer(service("b"), Arc::new(Answer::Silent));
        pending.answer(service("a"), Arc::new(Answer::Unknown));
        match pending.next() {
            Some(Due::Answer(name, answer)) => {
                assert_eq!(name, service("a"));
                assert!(matches!(*answer, Answer::Unknown));
            }
            _ => panic!("a was first"),
        }
        assert!(pending.since().is_some());
        assert!(matches!(pending.next(), Some(Due::Answer(name, _)) if name == service("b")));
        assert!(pending.since().is_none());
        assert!(pending.next().is_none());
    }

    #[test]
    fn a_client_that_does_not_read_its_errors_costs_no_more_for_it() {
        let mut pending = Pending::default();
        for _ in 0..10_000 {
            pending.error(ServiceError::default());
        }
        assert_eq!(pending.errors.len(), ERRORS_WAITING_MAX);
    }

    #[test]
    fn nothing_is_due_about_a_service_that_was_given_up() {
        let mut pending = Pending::default();
        pending.answer(service("a"), Arc::new(Answer::Silent));
        pending.forget(&service("a"));
        assert!(pending.since().is_none() && pending.next().is_none());
    }
}
