//! How many messages a client may send: a few a second for each service, and one for each that it is sent, since it
//! acknowledges those.

use tokio::time::Instant;

use crate::limits::{MESSAGES_MAX, MESSAGES_PER_SERVICE, MESSAGES_PERIOD};

/// Of one stream.
pub(super) struct Allowance {
    left: usize,
    filled_at: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: MESSAGES_MAX, filled_at: now }
    }

    /// For a message that it was sent.
    pub(super) fn earn(&mut self) {
        self.left = self.left.saturating_add(1);
    }

    /// For one that it sends. False when it has sent too many.
    pub(super) fn spend(&mut self, services: usize, now: Instant) -> bool {
        let max = MESSAGES_MAX + services * MESSAGES_PER_SERVICE;
        if now.duration_since(self.filled_at) >= MESSAGES_PERIOD {
            self.left = self.left.max(max);
            self.filled_at = now;
        }
        self.left = self.left.min(2 * max);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_has_so_many_messages_in_a_period_and_one_for_each_that_it_is_sent() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let spend = |allowance: &mut Allowance, now| (0..).take_while(|_| allowance.spend(0, now)).count();
        assert_eq!(spend(&mut allowance, start), MESSAGES_MAX);
        allowance.earn();
        assert_eq!(spend(&mut allowance, start), 1);
        let later = start + MESSAGES_PERIOD;
        assert_eq!(spend(&mut allowance, later), MESSAGES_MAX);
        assert!(allowance.spend(1, later + MESSAGES_PERIOD));
        assert_eq!(allowance.left, MESSAGES_MAX + MESSAGES_PER_SERVICE - 1);
    }
}
