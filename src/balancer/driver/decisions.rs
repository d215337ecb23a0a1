//! The decision log: the last ones are kept for those who ask later, new ones go to those who watch.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use lookaside_core::decision::{Decision, Kind};
use tokio::sync::broadcast;

use super::{Recorded, unix_ms};
use crate::limits::DECISIONS_KEPT_MAX;

pub(super) struct Decisions {
    kept: Mutex<VecDeque<Recorded>>,
    live: broadcast::Sender<Recorded>,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { kept: Mutex::default(), live: broadcast::Sender::new(DECISIONS_KEPT_MAX) }
    }
}

impl Decisions {
    pub(super) fn record(&self, decision: Decision) {
        log(&decision);
        let recorded = Recorded { at_unix_ms: unix_ms(), decision: Arc::new(decision) };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == DECISIONS_KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(recorded.clone());
        // Under the lock, so that whoever subscribes gets each decision once. Nobody watching is no error.
        let _ = self.live.send(recorded);
    }

    pub(super) fn subscribe(&self) -> (Vec<Recorded>, broadcast::Receiver<Recorded>) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        (kept.iter().cloned().collect(), self.live.subscribe())
    }
}

fn log(decision: &Decision) {
    let service = &decision.service;
    let address = decision.address.as_ref().map_or("", |a| a.as_str());
    let reason = decision.reasons.first();
    let code = reason.map_or("", |r| r.code.name());
    let detail = reason.map_or("", |r| r.detail.as_str());
    let change = decision.change.as_str();
    match decision.kind {
        Kind::Mode => tracing::warn!(%service, change, "mode changed"),
        Kind::State => tracing::info!(%service, address, change, code, detail, "endpoint changed"),
        Kind::Added => tracing::info!(%service, address, change, "endpoint added"),
        Kind::Removed => tracing::info!(%service, address, change, "endpoint removed"),
        Kind::Weight => tracing::debug!(%service, address, change, code, detail, "weight changed"),
    }
}
