//! What is to happen, by time; of what happens at the same microsecond, what was planned first comes first. So one seed gives
//! one history. What takes one way through the network, half of all, stands in a line of its own: it is planned in the order
//! in which it happens, and a heap would only cost time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

/// What is planned, for events of type `T`.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<Planned<T>>>,
    line: VecDeque<Planned<T>>,
    line_delay_us: u64,
    serial: u64,
    now_us: u64,
}

#[derive(Debug)]
struct Planned<T> {
    at_us: u64,
    serial: u64,
    event: T,
}

impl<T> Planned<T> {
    fn key(&self) -> (u64, u64) {
        (self.at_us, self.serial)
    }
}

impl<T> PartialEq for Planned<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Planned<T> {}

impl<T> PartialOrd for Planned<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Planned<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> Queue<T> {
    /// Nothing is planned; [`Queue::send`] takes this long.
    pub(crate) fn new(line_delay_us: u64) -> Self {
        Self { heap: BinaryHeap::new(), line: VecDeque::new(), line_delay_us, serial: 0, now_us: 0 }
    }

    /// When the last event came out.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Events that came out, and those still planned.
    pub(crate) fn planned_ever(&self) -> u64 {
        self.serial
    }

    /// Plans an event; one in the past happens now.
    pub(crate) fn at(&mut self, at_us: u64, event: T) {
        let planned = self.planned(at_us.max(self.now_us), event);
        self.heap.push(Reverse(planned));
    }

    /// Plans an event for after one way through the network.
    pub(crate) fn send(&mut self, event: T) {
        let planned = self.planned(self.now_us + self.line_delay_us, event);
        self.line.push_back(planned);
    }

    fn planned(&mut self, at_us: u64, event: T) -> Planned<T> {
        self.serial += 1;
        Planned { at_us, serial: self.serial, event }
    }

    /// The next event; from now on it is its time.
    pub(crate) fn next(&mut self) -> Option<T> {
        let from_heap = match (self.heap.peek(), self.line.front()) {
            (Some(Reverse(heap)), Some(line)) => heap < line,
            (Some(_), None) => true,
            (None, _) => false,
        };
        let next = if from_heap { self.heap.pop().map(|Reverse(next)| next) } else { self.line.pop_front() }?;
        self.now_us = next.at_us;
        Some(next.event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_as_they_were_planned() {
        let mut queue = Queue::new(10);
        queue.at(30, 'd');
        queue.at(10, 'a');
        queue.send('b');
        queue.at(10, 'c');
        assert_eq!((queue.next(), queue.now_us()), (Some('a'), 10));
        queue.send('e');
        queue.at(5, 'f');
        let rest: String = std::iter::from_fn(|| queue.next()).collect();
        assert_eq!((rest.as_str(), queue.now_us()), ("bcfed", 30));
    }
}
