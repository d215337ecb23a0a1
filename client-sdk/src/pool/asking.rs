//! Asking endpoints how loaded they are, for a call that is about to be made and on the side. Each question goes its own way: a
//! call that waits no longer leaves nothing behind, and what is answered too late for it helps the next one.

use std::{sync::Arc, time::Duration};

use http::request;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{EndpointPicker, NoPick, Pool};
use crate::{
    endpoint::Endpoint,
    picker::{Candidate, Pick, Rng, Said},
    probe::{Answer, Probe},
};

impl Pool {
    /// Whether it pays to wait for what endpoints say.
    pub(crate) fn asks(&self) -> bool {
        self.probing.asks()
    }

    /// As [`Pool::pick`], but where nothing fresh is known two endpoints are asked first. Until one is chosen the call counts
    /// nowhere.
    pub(crate) async fn pick_or_ask(&self, head: &request::Parts, tried: &[u64]) -> Result<Arc<Endpoint>, NoPick> {
        let picker = self.picker();
        let mut rng = self.rng();
        self.probing.budget.earn();
        let picked = match picker.pick_or_ask(self.keys.key_of(head), self.now_us(), &mut rng, tried) {
            None => None,
            Some(Pick::Sure(chosen)) => Some(chosen.item.clone()),
            Some(Pick::Ask(pair)) => {
                let [a, b] = self.ask(pair).await;
                let asked = [(&*pair[0].peer, a), (&*pair[1].peer, b)];
                // The list may be another one by now.
                self.picker.load().settle(asked, self.now_us(), &mut rng, tried).map(|chosen| chosen.item.clone())
            }
        };
        self.look_for_alarm();
        match picked {
            Some(picked) => {
                self.look_around(&picker, &picked, &mut rng);
                Ok(picked)
            }
            None => Err(NoPick::of(&picker)),
        }
    }

    /// How long a call waits for what endpoints say.
    fn patience_us(&self) -> u64 {
        self.probing.patience_us(self.fleet.answer_us_mean())
    }

    /// What they say of their load, as far as they do in time, and as far as they can be asked: one that sheds questions must not
    /// keep the others from being asked.
    async fn ask(&self, pair: [&Candidate<Arc<Endpoint>>; 2]) -> [Said; 2] {
        let now_us = self.now_us();
        let patience_us = self.patience_us();
        let probes = pair.map(|candidate| Probe::of(&candidate.item, now_us, patience_us));
        let count = probes.iter().flatten().map(|_| 1).sum();
        if count == 0 || !self.probing.budget.spend(count) {
            return [Said::Unasked; 2];
        }
        let until = Instant::now() + Duration::from_micros(patience_us);
        let [a, b] = probes.map(|probe| {
            probe.map(|probe| {
                let (tell, told) = oneshot::channel();
                self.send(probe, Some(tell));
                told
            })
        });
        let mut said = [Said::Unasked; 2];
        for (said, answer) in said.iter_mut().zip([a, b]) {
            if let Some(answer) = answer {
                *said = timeout_at(until, answer).await.ok().and_then(Result::ok).unwrap_or(Said::Nothing);
            }
        }
        said
    }

    /// After a pick: now and then an endpoint is asked on the side. One that is idle has no responses that could tell of it, and
    /// where asking does not pay nobody else would find out that it does by now.
    pub(super) fn look_around(&self, picker: &EndpointPicker, picked: &Arc<Endpoint>, rng: &mut Rng) {
        let wandered = picker.wander(rng).map(|candidate| &candidate.item).filter(|_| self.probing.budget.spend(1));
        let looked_at = match wandered {
            Some(endpoint) => Some(endpoint),
            None if !self.asks() && self.probing.take_look(self.now_us()) => Some(picked),
            None => None,
        };
        if let Some(endpoint) = looked_at
            && self.probing.begin_aside()
        {
            match Probe::of(endpoint, self.now_us(), self.patience_us()) {
                Some(probe) => self.send(probe, None),
                None => self.probing.end_aside(),
            }
        }
    }

    /// Sends a probe. What is answered goes to whoever waits for it; if nobody does any more, or it was sent on the side, to the
    /// picker.
    fn send(&self, probe: Probe, tell: Option<oneshot::Sender<Said>>) {
        let (pool, endpoint, sent_us) = (self.me.clone(), probe.endpoint().clone(), self.now_us());
        tokio::spawn(async move {
            let answer = probe.ask().await;
            let Some(pool) = pool.upgrade() else { return };
            pool.learn(&endpoint, answer, sent_us);
            if tell.is_none() {
                pool.probing.end_aside();
            }
            let said = match answer {
                Answer::Rif(rif) => Said::Rif(rif),
                Answer::Unwilling => Said::Unwilling,
                Answer::Busy | Answer::Mute => Said::Nothing,
            };
            if tell.is_none_or(|tell| tell.send(said).is_err()) {
                // Said somewhere between the question and now: perhaps half-way.
                let now_us = pool.now_us();
                pool.picker.load().heard(&endpoint.peer, said, sent_us.midpoint(now_us), now_us);
            }
        });
    }

    /// Draws conclusions from what came of a probe: whether asking pays.
    fn learn(&self, endpoint: &Endpoint, answer: Answer, sent_us: u64) {
        let now_us = self.now_us();
        endpoint.probed.learn(answer, now_us);
        match answer {
            Answer::Rif(_) | Answer::Unwilling => self.probing.answered(now_us.saturating_sub(sent_us)),
            Answer::Busy => {}
            Answer::Mute => {
                let picker = self.picker.load();
                let all = picker.candidates();
                let mute = all.iter().filter(|candidate| candidate.item.probed.is_mute(now_us)).count();
                if mute * 2 > all.len() && self.probing.most_are_mute(now_us) {
                    tracing::info!(service = self.service, "endpoints tell of load, but most do not answer probes");
                }
            }
        }
        self.fleet.set_asks(self.probing.decide(self.fleet.answer_us_mean(), now_us));
    }
}
