//! Where calls wait for a place while every endpoint has as many calls in flight as it may have. First come, first served, as
//! far as several threads allow; a place that nobody takes is passed on. It refuses to know which endpoint has the place.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::sync::Notify;

/// Calls that wait unless somebody says otherwise: what a fleet serves in a moment, and nothing to fill a memory with.
pub(crate) const WAITING_MAX: u32 = 1_000;

#[derive(Debug)]
pub(crate) struct Room {
    waiting: AtomicU32,
    waiting_max: AtomicU32,
    freed: Notify,
}

impl Default for Room {
    fn default() -> Self {
        Self { waiting: AtomicU32::new(0), waiting_max: AtomicU32::new(WAITING_MAX), freed: Notify::new() }
    }
}

impl Room {
    pub(crate) fn set_waiting_max(&self, waiting_max: u32) {
        self.waiting_max.store(waiting_max, SeqCst);
    }

    /// Whether calls wait: another one waits behind them.
    pub(crate) fn is_awaited(&self) -> bool {
        self.waiting.load(SeqCst) > 0
    }

    /// A place in the queue, and whether there is anybody before it: who leaves passes the turn on. The error says how many
    /// wait already.
    pub(crate) fn queue(&self) -> Result<(Waiting<'_>, bool), u32> {
        let max = self.waiting_max.load(SeqCst);
        let before = self.waiting.fetch_update(SeqCst, SeqCst, |n| (n < max).then_some(n + 1))?;
        Ok((Waiting(self), before > 0))
    }

    /// A call has ended somewhere.
    pub(crate) fn free(&self) {
        if self.is_awaited() {
            self.freed.notify_one();
        }
    }
}

/// A call in the queue, until dropped.
#[derive(Debug)]
pub(crate) struct Waiting<'a>(&'a Room);

impl<'a> Waiting<'a> {
    /// Resolves when a place may be free. To be enabled before looking for one.
    pub(crate) fn turn(&self) -> tokio::sync::futures::Notified<'a> {
        self.0.freed.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, SeqCst);
        // Perhaps there is more room than the one place it took, or it has taken none.
        self.0.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_turn_that_is_given_up_goes_to_the_next() {
        let room = Room::default();
        room.set_waiting_max(2);
        let ((first, is_behind), (second, is_behind_it)) = (room.queue().unwrap(), room.queue().unwrap());
        assert_eq!([is_behind, is_behind_it], [false, true]);
        assert_eq!(room.queue().err(), Some(2));
        let mut turns = [Box::pin(first.turn()), Box::pin(second.turn())];
        assert!(turns.iter_mut().all(|turn| !turn.as_mut().enable()));
        room.free();
        let [given_up, waits] = turns;
        drop(given_up);
        waits.await;
        drop((first, second));
        assert!(!room.is_awaited());
    }
}
