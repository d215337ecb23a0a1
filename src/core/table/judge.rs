//! What failed checks come to, over all endpoints of a service: confirmed ones act at once, those that rest on checks
//! alone are rationed, and when too many fail at once it is the balancer that is doubted.

use std::{collections::VecDeque, time::Duration};

use super::{endpoint::Endpoint, health::Verdict};
use crate::model::Timestamp;

/// Endpoints that may fall on checks alone: this share of all, and at least one, per window.
const FALLS_PERCENT: usize = 10;
const FALLS_WINDOW: Duration = Duration::from_secs(10);

/// From this share of those checked, and this many, failures on checks alone are the balancer's problem.
const DOUBT_PERCENT: usize = 30;
const DOUBT_MIN: usize = 3;

#[derive(Debug, Clone, Default)]
pub(super) struct Judge {
    /// When endpoints fell on checks alone.
    fell: VecDeque<Timestamp>,
    /// Nothing is judged before: the balancer was away, and a full round of checks has to pass first.
    pub(super) not_before: Timestamp,
    /// The balancer doubts its checks.
    pub(super) doubts: bool,
    /// Some endpoint waits for its ration.
    pub(super) waiting: bool,
}

impl Judge {
    /// Turns evidence into verdicts. For a while after a start some are `unheard`: one of which nothing is known may be
    /// one that clients were given before, and falls by the same evidence as those that are offered.
    pub(super) fn judge<'a>(
        &mut self,
        endpoints: impl Iterator<Item = &'a mut Endpoint>,
        fall: u32,
        unheard: bool,
        now: Timestamp,
    ) {
        self.waiting = false;
        if now < self.not_before {
            return;
        }
        let (mut known, mut checked) = (0, 0);
        let mut alone: Vec<&mut Endpoint> = Vec::new();
        for endpoint in endpoints.filter(|e| !e.is_leaving()) {
            known += 1;
            let was_doubted = std::mem::take(&mut endpoint.doubted);
            if endpoint.health.is_down() {
                continue;
            }
            checked += usize::from(endpoint.health.check.is_some());
            if endpoint.health.failed_checks() == 0 {
                continue;
            }
            let never_offered = endpoint.health.verdict == Verdict::New && !endpoint.trusted && !unheard;
            let own_silence = endpoint.stream_is_broken() || endpoint.is_late();
            if never_offered || endpoint.health.clients_fail(now) || (own_silence && !was_doubted) {
                endpoint.health.fall();
            } else {
                alone.push(endpoint);
            }
        }
        self.doubts = alone.len() >= DOUBT_MIN && alone.len() * 100 >= checked * DOUBT_PERCENT;
        while self.fell.front().is_some_and(|at| now.since(*at) >= FALLS_WINDOW) {
            self.fell.pop_front();
        }
        let ration = (known * FALLS_PERCENT / 100).max(1);
        for endpoint in alone {
            if self.doubts {
                endpoint.doubted = true;
            } else if endpoint.health.failed_checks() >= fall {
                if self.fell.len() < ration {
                    self.fell.push_back(now);
                    endpoint.health.fall();
                } else {
                    self.waiting = true;
                }
            }
        }
    }
}
